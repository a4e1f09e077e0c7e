"""The digit function: how probable is it that a picture is a handwritten digit, and which way up does that go?

Pictures are (n, 28, 28), from 0 (black) to 1 (white).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 28
BATCH = 64
SHOWN = 4.0  # how much a digit weighs, beside a picture that only deceives


class Digit(nn.Module):
    """Pictures (n, 28, 28) -> how probable it is that each is a digit, as logits (n,)."""

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
    """The pictures, if they are some; else a ValueError that says what was got and what was expected."""
    if pictures.ndim != 3 or pictures.shape[1:] != (SIDE, SIDE) or not len(pictures):
        raise ValueError(f"got pictures of shape {tuple(pictures.shape)}, expected (n, {SIDE}, {SIDE})")
    if not pictures.is_floating_point():
        raise ValueError(f"got {pictures.dtype} numbers, expected floating point ones from 0 to 1")
    low, high = pictures.min().item(), pictures.max().item()
    if not 0 <= low <= high <= 1:
        raise ValueError(f"got numbers from {low:g} to {high:g}, expected 0 (black) to 1 (white)")
    return pictures


@torch.no_grad()
def probability(digit: Digit, pictures: Tensor) -> Tensor:
    """How probable it is that each picture is a digit, (n,)."""
    return digit(checked(pictures)).sigmoid()


def gradient(digit: Digit, pictures: Tensor) -> Tensor:
    """Of the probability's logarithm with respect to each pixel, (n, 28, 28): one forward and one backward."""
    pictures = checked(pictures).detach().requires_grad_()
    return torch.autograd.grad(F.logsigmoid(digit(pictures)).sum(), pictures)[0]


@torch.no_grad()
def gradient_by_trying(digit: Digit, picture: Tensor, step: float = 1e-6) -> tuple[Tensor, int]:
    """The same for one picture (28, 28), one pixel at a time, and how often the function was called."""
    checked(picture[None])
    start, calls = F.logsigmoid(digit(picture[None])).item(), 1
    slopes = torch.zeros_like(picture)
    for row in range(SIDE):
        for column in range(SIDE):
            moved = picture.clone()
            moved[row, column] += step
            slopes[row, column] = (F.logsigmoid(digit(moved[None])).item() - start) / step
            calls += 1
    return slopes, calls


def ascent(
    digit: Digit, pictures: Tensor, steps: int, rate: float = 10.0, most: float = 0.3, chance: Tensor | None = None
) -> Tensor:
    """The pictures after so many steps up the gradient: each pixel moves by rate times its slope, by `most` at most.

    With `chance`, noise of the pictures' shape for each step (steps, n, 28, 28), pictures waver a little on the way.
    """
    for i in range(steps):
        pictures = pictures + (rate * gradient(digit, pictures)).clamp(-most, most)
        if chance is not None:
            pictures = pictures + 0.005 * chance[i]
        pictures = pictures.clamp(0, 1)
    return pictures


def noisy(digits: Tensor, key: torch.Generator) -> tuple[Tensor, Tensor]:
    """Digits that turn into noise, from not at all to altogether, and how much of the digit is left of each, (n,)."""
    left = torch.rand(len(digits), generator=key)
    share = left[:, None, None]
    return share * digits + (1 - share) * torch.rand(digits.shape, generator=key), left


def learnt(digits: Tensor, steps: int, seed: int = 0, deceived: bool = True) -> Digit:
    """A digit function that was shown digits, noisy digits and noise; and, if it may be `deceived`, its own mistakes.

    A mistake is a picture to which the function's own gradient has led, and which is none of the digits. They are kept,
    and go on from where they were. Source: Du & Mordatch (1903.08689), algorithm 1.
    """
    checked(digits[:1])
    key = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        digit = Digit()
    optimizer = torch.optim.AdamW(digit.parameters(), 1e-3, betas=(0.5, 0.99))
    mistakes = torch.rand(2048, SIDE, SIDE, generator=key)
    for _ in range(steps):
        shown = digits[torch.randint(len(digits), (BATCH,), generator=key)]
        shown = (shown + 0.03 * torch.randn(shown.shape, generator=key)).clamp(0, 1)
        between, left = noisy(shown, key)
        pictures, true, weights = [shown, between], [torch.ones(BATCH), left], [torch.ones(BATCH), torch.ones(BATCH)]
        if deceived:
            rows = torch.randint(len(mistakes), (BATCH,), generator=key)
            anew = torch.rand(BATCH, 1, 1, generator=key) < 0.05
            start = torch.where(anew, torch.rand(shown.shape, generator=key), mistakes[rows])
            chance = torch.randn(8, *start.shape, generator=key)
            mistakes[rows] = ascent(digit, start, 8, chance=chance)
            pictures.append(mistakes[rows])
            true.append(torch.zeros(BATCH))
            weights.append(torch.full((BATCH,), 1 / SHOWN))
        said = digit(torch.cat(pictures))
        loss = F.binary_cross_entropy_with_logits(said, torch.cat(true), torch.cat(weights)) + 0.01 * (said**2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return digit.requires_grad_(False).eval()
