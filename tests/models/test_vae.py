"""The autoencoder against diffusers, on random weights."""

import pytest
import torch
from diffusers import AutoencoderKL as Reference
from torch import Tensor, nn

from gradina.models.vae import AutoencoderKL, VAEConfig
from gradina.weights.key_tables import VAE
from gradina.weights.remap import read, sources, unclaimed

TOLERANCE = 1e-4


def error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def randomise(network: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator) if p.ndim < 2 else 0


def both(config: VAEConfig) -> tuple[Reference, AutoencoderKL]:
    levels = len(config.widths)
    reference = Reference(
        in_channels=config.channels, out_channels=config.channels, latent_channels=config.latent_channels,
        block_out_channels=config.widths, layers_per_block=config.blocks, norm_num_groups=config.groups,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        scaling_factor=config.scale,
    )  # fmt: skip
    randomise(reference)
    ours = AutoencoderKL(config)
    where = sources(ours.state_dict(), VAE, "diffusers")
    assert unclaimed(reference.state_dict(), where) == []
    ours.load_state_dict(read(reference.state_dict(), where))
    return reference.eval(), ours.eval()


@pytest.mark.parametrize(
    "config",
    [
        VAEConfig(widths=(8, 16), groups=4, blocks=1),
        VAEConfig(widths=(8, 8, 24), groups=8, blocks=2, latent_channels=3, scale=0.7),
        VAEConfig(widths=(16, 8, 32, 32), groups=8, channels=1, latent_channels=8, blocks=1),
    ],
    ids=["two levels", "three levels", "one channel"],
)
@torch.no_grad()
def test_small(config):
    compare(config, side=5 * config.factor)


@torch.no_grad()
def test_the_real_size(fast_init):
    with fast_init():
        compare(VAEConfig(), side=32)


def compare(config: VAEConfig, side: int) -> None:
    reference, ours = both(config)
    pixels = torch.randn(2, config.channels, side, side + config.factor)
    theirs = reference.encode(pixels).latent_dist
    mine = ours.posterior(pixels)
    assert error(mine.mean, theirs.mean) < TOLERANCE
    assert error(mine.logvar, theirs.logvar) < TOLERANCE
    assert error(mine.kl(), theirs.kl()) < TOLERANCE
    latents = ours.encode(pixels)
    assert torch.equal(latents, mine.mean * config.scale)
    assert error(ours.decode(latents), reference.decode(latents / config.scale).sample) < TOLERANCE


def test_a_sample_is_mean_plus_noise_times_std():
    ours = AutoencoderKL(VAEConfig(widths=(8, 16), groups=4, blocks=1)).eval()
    pixels, noise = torch.randn(1, 3, 8, 8), torch.randn(1, 4, 4, 4)
    gaussian = ours.posterior(pixels)
    expected = (gaussian.mean + noise * gaussian.logvar.exp().sqrt()) * 0.18215
    assert torch.allclose(ours.encode(pixels, noise), expected)
