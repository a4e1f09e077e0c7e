"""The U-Net against diffusers, on random weights and in every form that Stable Diffusion 1 and 2 have."""

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from gradina.models.unet import Control, UNet, UNetConfig
from gradina.weights.key_tables import UNET
from gradina.weights.remap import read, sources, unclaimed

TOLERANCE = 1e-4
SMALL = UNetConfig(widths=(16, 32), attention=(True, False), heads=(4, 4), blocks=1, context=24, groups=8, size=8)
SD1 = UNetConfig()
SD2 = UNetConfig(heads=(5, 10, 20, 20), context=1024, linear=True)


def error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def randomise(network: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator) if p.ndim < 2 else 0


def reference_of(c: UNetConfig) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=c.size, in_channels=c.channels, out_channels=c.out_channels, block_out_channels=c.widths,
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in c.attention],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(c.attention)],
        attention_head_dim=list(c.heads), layers_per_block=c.blocks, transformer_layers_per_block=c.depth,
        cross_attention_dim=c.context, use_linear_projection=c.linear, norm_num_groups=c.groups,
    ).eval()  # fmt: skip


def carry(reference: nn.Module, ours: UNet) -> UNet:
    where = sources(ours.state_dict(), UNET, "diffusers")
    assert unclaimed(reference.state_dict(), where) == []
    ours.load_state_dict(read(reference.state_dict(), where), assign=True)
    return ours.eval()


@torch.no_grad()
def compare(config: UNetConfig, shape: tuple[int, ...], tokens: int = 7) -> float:
    reference = reference_of(config)
    randomise(reference)
    with torch.device("meta"):
        ours = UNet(config)
    carry(reference, ours)
    x, cond = torch.randn(shape), torch.randn(shape[0], tokens, config.context)
    t = torch.randint(1000, (shape[0],))
    return error(ours(x, t, cond), reference(x, t, cond).sample)


FORMS = {
    "1x1 projections": SMALL,
    "linear projections": replace(SMALL, linear=True),
    "heads by level": replace(SMALL, widths=(16, 32, 64), heads=(2, 4, 8), attention=(True, True, False), linear=True),
    "inpainting": replace(SMALL, channels=9),
    "attention below only": replace(SMALL, attention=(False, True), blocks=2),
    "no attention outside the middle": replace(SMALL, attention=(False, False)),
    "attention everywhere": replace(SMALL, widths=(8, 24, 16), heads=(2, 3, 4), attention=(True,) * 3, blocks=3),
    "two transformer blocks": replace(SMALL, depth=2, context=10),
    "one level": replace(SMALL, widths=(16,), heads=(2,), attention=(True,)),
    "three channels": replace(SMALL, channels=3, out_channels=6, groups=4),
}


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)
def test_small(config):
    assert compare(config, (2, config.channels, 8, 8)) < TOLERANCE


@pytest.mark.parametrize("size", [(9, 13), (5, 6), (7, 16)])
def test_sizes_that_do_not_halve(size):
    config = replace(SMALL, widths=(16, 32, 32), heads=(4,) * 3, attention=(True, True, False))
    assert compare(config, (1, 4, *size)) < TOLERANCE


@pytest.mark.parametrize("config", [SD1, SD2], ids=["sd1", "sd2"])
def test_the_real_size(config, fast_init):
    with fast_init():
        assert compare(config, (1, 4, 16, 16), tokens=77) < TOLERANCE


def test_without_time_input():
    config = replace(SMALL, time=False)
    unet = UNet(config).eval()
    assert not any("time" in name for name in unet.state_dict())
    x, cond = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 24)
    early, late = unet(x, torch.tensor([1, 1]), cond), unet(x, torch.tensor([900, 20]), cond)
    assert early.shape == x.shape
    assert torch.equal(early, late)


def control_of(unet: UNet, x: Tensor, t: Tensor, cond: Tensor, scale: float) -> Control:
    """Random residuals of the shapes of the skips and the middle."""
    shapes: list[tuple[int, ...]] = []
    hooks = [unet.conv_in.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))]
    hooks += [d.register_forward_hook(lambda _, __, out: shapes.extend(tuple(h.shape) for h in out)) for d in unet.down]
    unet(x, t, cond)
    for hook in hooks:
        hook.remove()
    return Control([scale * torch.randn(shape) for shape in shapes], scale * torch.randn(shapes[-1]))


@pytest.mark.parametrize("config", [SMALL, FORMS["heads by level"], FORMS["one level"]], ids=["two", "three", "one"])
@torch.no_grad()
def test_control_is_added_to_skips_and_middle_as_in_diffusers(config: UNetConfig) -> None:
    reference = reference_of(config)
    randomise(reference)
    ours = carry(reference, UNet(config))
    x, t, cond = torch.randn(2, 4, 8, 8), torch.randint(1000, (2,)), torch.randn(2, 7, config.context)
    control = control_of(ours, x, t, cond, 0.5)
    given = {"down_block_additional_residuals": tuple(control.down), "mid_block_additional_residual": control.middle}
    expected = reference(x, t, cond, **given).sample
    assert error(ours(x, t, cond, control), expected) < 1e-5
    assert error(ours(x, t, cond), expected) > 1e-2


@torch.no_grad()
def test_control_of_zeros_changes_no_bit() -> None:
    unet = UNet(SMALL).eval()
    x, t, cond = torch.randn(2, 4, 8, 8), torch.randint(1000, (2,)), torch.randn(2, 7, 24)
    assert torch.equal(unet(x, t, cond, control_of(unet, x, t, cond, 0.0)), unet(x, t, cond))


def test_control_needs_a_residual_for_each_skip() -> None:
    unet = UNet(SMALL).eval()
    x, t, cond = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 7, 24)
    control = control_of(unet, x, t, cond, 1.0)
    with pytest.raises(ValueError, match=r"control: got 3 residuals, expected one for each of 4 skips"):
        unet(x, t, cond, replace(control, down=control.down[:-1]))
