"""How like the icons is what a model draws? Each picture beside the icon that it should show, at the best alignment.

The icon is composited on the same background at every size and offset of a search; the nearest in squared error is
taken. The icons' own reconstructions by the autoencoder are measured in the same way: no U-Net can do better.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from classifiers import BATCH, centred, over_background
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.training.data.icons import Icons
from gradina.training.data.synthetic import BACKGROUND_NAMES, BACKGROUNDS

SIDES = range(102, 129)  # of an icon, in pixels of 128: scales 0.8 to 1
SIDE = 122  # of an icon in the middle of its scales in the recipe's last phases
SHIFT = 8  # pixels, the largest offset from the centre along each axis
RIM = 2  # rows of pixels at the top and at the bottom
SUBSETS, SUBSET = 50, 250  # of the kernel distance


@dataclass(frozen=True)
class Aligned:
    """Pictures beside their icons (n, 3, h, w), in -1..1, as near as size and offset bring them."""

    pictures: Tensor
    icons: Tensor

    @property
    def psnr(self) -> Tensor:
        """Of each picture, in dB (n,)."""
        return 10 * torch.log10(4 / (self.pictures - self.icons).square().flatten(1).mean(1))

    @property
    def edges(self) -> Tensor:
        """The mean absolute difference of neighbouring pixels, relative to the icon's (n,)."""
        return edge_energy(self.pictures) / edge_energy(self.icons)


def edge_energy(pixels: Tensor) -> Tensor:
    """The mean absolute difference of neighbouring pixels (n,)."""
    down, right = (pixels.diff(dim=dim).abs().flatten(1).mean(1) for dim in (2, 3))
    return (down + right) / 2


def rim(pixels: Tensor) -> Tensor:
    """The standard deviation of the outer rows, in grey levels (n,): 0 on an even background."""
    rows = torch.cat([pixels[:, :, :RIM].flatten(2), pixels[:, :, -RIM:].flatten(2)], dim=2)
    return 127.5 * rows.std(dim=2).mean(dim=1)


def align(pixels: Tensor, icons: Icons, rows: Tensor, grounds: Tensor) -> Aligned:
    """Pictures (n, 3, h, w) beside icons `rows` (n,) on named backgrounds (n,), at the best size and offset."""
    found = [_nearest(x, icons.pictures[i], int(g)) for x, i, g in zip(pixels, rows.tolist(), grounds, strict=True)]
    return Aligned(pixels, torch.stack(found))


def _nearest(picture: Tensor, icon: Tensor, ground: int) -> Tensor:
    side, colour = picture.shape[-1], background(ground)
    above, padded = picture - colour, side + 2 * SHIFT
    layers = torch.cat([centred(icon[None], s, padded) for s in SIDES])
    layers = over_background(layers, BACKGROUND_NAMES[ground]) - colour  # what the icon adds to the background
    correlation = _correlated(layers, above)
    energy = F.avg_pool2d(layers.square().sum(1, keepdim=True), side, stride=1)[:, 0] * side**2
    best = int((energy - 2 * correlation).argmin())
    size, down, right = torch.unravel_index(torch.tensor(best), energy.shape)
    return colour + layers[size, :, down : down + side, right : right + side]


def _correlated(layers: Tensor, picture: Tensor) -> Tensor:
    """The inner products (s, 2 SHIFT + 1, 2 SHIFT + 1) of layers (s, 3, p, p) with a picture at each offset."""
    size, count = layers.shape[-2:], 2 * SHIFT + 1
    spectra = torch.fft.rfft2(layers) * torch.fft.rfft2(picture, s=size).conj()
    return torch.fft.irfft2(spectra.sum(1), s=size)[:, :count, :count]


def background(ground: int) -> Tensor:
    """A named background as (3, 1, 1), in -1..1."""
    return torch.tensor(BACKGROUNDS[BACKGROUND_NAMES[ground]]).view(3, 1, 1) / 127.5 - 1


def placed(icons: Icons, row: int, ground: int) -> Tensor:
    """An icon in the middle of a named background (3, h, w), in -1..1, as large as most that the model learns from."""
    layer = centred(icons.pictures[row : row + 1], SIDE, icons.pictures.shape[-1])
    return over_background(layer, BACKGROUND_NAMES[ground])[0]


@torch.no_grad()
def features(classifier: nn.Module, pixels: Tensor) -> Tensor:
    """What a classifier of things reads its last layer from (n, width)."""
    assert isinstance(classifier, nn.Sequential)
    return torch.cat([classifier[:-1](part) for part in torch.split(pixels, BATCH)])


def kernel_distance(one: Tensor, other: Tensor) -> float:
    """KID of two sets of features (n, width): the squared maximum mean discrepancy, a mean over random subsets.

    Source: Bińkowski et al., "Demystifying MMD GANs" (1801.01401), section 3; the kernel is (x·y / width + 1)³.
    """
    key, size = torch.Generator().manual_seed(0), min(SUBSET, len(one), len(other))
    estimates = []
    for _ in range(SUBSETS):
        x, y = (of[torch.randperm(len(of), generator=key)[:size]].double() for of in (one, other))
        within = sum((kernel(a, a).sum() - kernel(a, a).trace()) / (size * (size - 1)) for a in (x, y))
        estimates.append(within - 2 * kernel(x, y).mean())
    return float(torch.stack(estimates).mean())


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """(n, width), (m, width) -> (n, m)."""
    return (x @ y.T / x.shape[1] + 1) ** 3
