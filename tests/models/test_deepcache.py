"""DeepCache: which parts of the U-Net are computed at which call, and their output."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from gradina.models.deepcache import DeepCache
from gradina.models.unet import Control, UNet, UNetConfig

SMALL = UNetConfig(widths=(16, 32), attention=(True, False), heads=(4, 4), blocks=2, context=24, groups=8, size=8)


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(SMALL).requires_grad_(False).eval()


@contextmanager
def counted(unet: UNet) -> Iterator[dict[str, int]]:
    """How often the middle and the last block were computed."""
    seen = {"middle": 0, "last": 0}
    watched = {"middle": unet.mid, "last": unet.up[-1].res[-1]}
    for name, part in watched.items():
        part.register_forward_pre_hook(lambda *_, name=name: seen.update({name: seen[name] + 1}))
    yield seen


def inputs(batch: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    key = torch.Generator().manual_seed(seed)
    t = torch.randint(1000, (batch,), generator=key)
    return torch.randn(batch, 4, 8, 8, generator=key), t, torch.randn(batch, 5, 24, generator=key)


def test_each_third_call_is_the_whole_unet(unet: UNet) -> None:
    cached = DeepCache(unet, 3)
    with counted(unet) as seen:
        outputs = [cached(*inputs(2, seed)) for seed in range(5)]
    assert seen == {"middle": 2, "last": 5}
    for seed, now in enumerate(outputs):
        assert torch.equal(now, unet(*inputs(2, seed))) == (seed % 3 == 0)


def test_between_whole_calls_input_time_and_text_still_matter(unet: UNet) -> None:
    x, t, cond = inputs(1, 0)
    others = [(inputs(1, 1)[0], t, cond), (x, t + 100, cond), (x, t, inputs(1, 1)[2])]
    for other in others:
        cached = DeepCache(unet, 2)
        first = cached(x, t, cond)
        assert not torch.equal(cached(*other), first)
    cached = DeepCache(unet, 2)
    assert torch.equal(cached(x, t, cond), cached(x, t, cond))  # the same input: the same, though half is kept


def test_another_batch_size_begins_anew(unet: UNet) -> None:
    """As where guidance begins or ends: nothing kept would fit."""
    cached = DeepCache(unet, 4)
    with counted(unet) as seen:
        cached(*inputs(2, 0))
        one = cached(*inputs(1, 1))
        cached(*inputs(1, 2))
    assert seen["middle"] == 2
    assert torch.equal(one, unet(*inputs(1, 1)))


def test_between_whole_calls_control_reaches_the_outermost_skip(unet: UNet) -> None:
    given = inputs(1, 0)
    first, _ = unet.stem(*given[:2])
    shapes = [first.shape, *(h.shape for h in unet.down[0](first, unet.time(given[1]), given[2]))]
    inner = [torch.zeros(shape) for shape in shapes[1:]]
    inner += [torch.zeros(1, 32, 4, 4)] * SMALL.blocks
    middle = torch.zeros(1, 32, 4, 4)
    none, outer = Control([torch.zeros(shapes[0]), *inner], middle), Control([torch.ones(shapes[0]), *inner], middle)
    deep = Control(none.down, middle + 1)
    for control, matters in ((none, False), (outer, True), (deep, False)):
        cached = DeepCache(unet, 2)
        before = cached(*given)
        assert torch.equal(cached(*given, control), before) != matters
    assert torch.equal(DeepCache(unet, 2)(*given, deep), unet(*given, deep))
    assert not torch.equal(unet(*given, deep), unet(*given))
