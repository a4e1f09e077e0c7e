"""The digit function: the probability that a picture is a handwritten digit, and its gradient.

Pictures are (n, 28, 28), from 0 (black) to 1 (white).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 28
BATCH = 64
POSITIVE_WEIGHT = 4.0  # of a digit in the loss, relative to an adversarial example


class Digit(nn.Module):
    """Pictures (n, 28, 28) -> logits of the probability that each is a digit, (n,)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.SiLU(),
            nn.Flatten(), nn.Linear(64 * 16, 1),
        )  # fmt: skip

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures[:, None])[:, 0]


def checked(pictures: Tensor) -> Tensor:
    """The pictures. Raises ValueError unless they are (n, 28, 28) floats from 0 to 1."""
    if pictures.ndim != 3 or pictures.shape[1:] != (SIDE, SIDE) or not len(pictures):
        raise ValueError(f"got pictures of shape {tuple(pictures.shape)}, expected (n, {SIDE}, {SIDE})")
    if not pictures.is_floating_point():
        raise ValueError(f"got dtype {pictures.dtype}, expected floating point values from 0 to 1")
    low, high = pictures.min().item(), pictures.max().item()
    if not 0 <= low <= high <= 1:
        raise ValueError(f"got values from {low:g} to {high:g}, expected 0 (black) to 1 (white)")
    return pictures


@torch.no_grad()
def probability(digit: Digit, pictures: Tensor) -> Tensor:
    """The probability that each picture is a digit, (n,)."""
    return digit(checked(pictures)).sigmoid()


def gradient(digit: Digit, pictures: Tensor) -> Tensor:
    """Of the log-probability with respect to each pixel, (n, 28, 28): one forward and one backward pass."""
    pictures = checked(pictures).detach().requires_grad_()
    return torch.autograd.grad(F.logsigmoid(digit(pictures)).sum(), pictures)[0]


@torch.no_grad()
def numerical_gradient(digit: Digit, picture: Tensor, step: float = 1e-6) -> tuple[Tensor, int]:
    """The same for one picture (28, 28) by finite differences, pixel by pixel, and the number of evaluations."""
    checked(picture[None])
    start, evaluations = F.logsigmoid(digit(picture[None])).item(), 1
    result = torch.zeros_like(picture)
    for row in range(SIDE):
        for column in range(SIDE):
            shifted = picture.clone()
            shifted[row, column] += step
            result[row, column] = (F.logsigmoid(digit(shifted[None])).item() - start) / step
            evaluations += 1
    return result, evaluations


def ascent(
    digit: Digit,
    pictures: Tensor,
    steps: int,
    step_size: float = 10.0,
    max_step: float = 0.3,
    noise: Tensor | None = None,
) -> Tensor:
    """The pictures after some steps of gradient ascent: each pixel moves by step_size times its gradient, clamped.

    With `noise` (steps, n, 28, 28) a little of it is added at each step (Langevin dynamics).
    """
    for i in range(steps):
        pictures = pictures + (step_size * gradient(digit, pictures)).clamp(-max_step, max_step)
        if noise is not None:
            pictures = pictures + 0.005 * noise[i]
        pictures = pictures.clamp(0, 1)
    return pictures


def mix_with_noise(digits: Tensor, key: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random mixtures of digits and uniform noise, and the fraction of the digit in each, (n,)."""
    fractions = torch.rand(len(digits), generator=key)
    fraction = fractions[:, None, None]
    return fraction * digits + (1 - fraction) * torch.rand(digits.shape, generator=key), fractions


def train_digit(digits: Tensor, steps: int, seed: int = 0, adversarial: bool = True) -> Digit:
    """A digit function trained on digits and mixtures with noise; if `adversarial`, also on adversarial examples.

    These are pictures to which ascent of the function's own gradient has led. A replay buffer keeps them, and later
    ascents start from there. Source: Du & Mordatch (1903.08689), algorithm 1.
    """
    checked(digits[:1])
    key = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        digit = Digit()
    optimizer = torch.optim.AdamW(digit.parameters(), 1e-3, betas=(0.5, 0.99))
    buffer = torch.rand(2048, SIDE, SIDE, generator=key)
    for _ in range(steps):
        batch = digits[torch.randint(len(digits), (BATCH,), generator=key)]
        batch = (batch + 0.03 * torch.randn(batch.shape, generator=key)).clamp(0, 1)
        mixed, fractions = mix_with_noise(batch, key)
        ones = torch.ones(BATCH)
        pictures, targets, weights = [batch, mixed], [ones, fractions], [ones, ones]
        if adversarial:
            rows = torch.randint(len(buffer), (BATCH,), generator=key)
            restart = torch.rand(BATCH, 1, 1, generator=key) < 0.05
            start = torch.where(restart, torch.rand(batch.shape, generator=key), buffer[rows])
            noise = torch.randn(8, *start.shape, generator=key)
            buffer[rows] = ascent(digit, start, 8, noise=noise)
            pictures.append(buffer[rows])
            targets.append(torch.zeros(BATCH))
            weights.append(torch.full((BATCH,), 1 / POSITIVE_WEIGHT))
        logits = digit(torch.cat(pictures))
        loss = (
            F.binary_cross_entropy_with_logits(logits, torch.cat(targets), torch.cat(weights))
            + 0.01 * (logits**2).mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return digit.requires_grad_(False).eval()
