"""On a GPU: the same pictures as on the CPU, however they are computed. Without one, nothing here is tested."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import gradina
from gradina.images.tensor import to_pixels
from gradina.models.unet import UNet, UNetConfig
from gradina.nn import ops
from gradina.runtime.cuda_graph import MAX_GRAPHS, CUDAGraphed
from gradina.runtime.engines import with_engine
from gradina.tasks.metrics import psnr

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")

ASKED = gradina.Request(prompt="a fox", steps=5, seed=3, guidance_scale=4.0, width=64, height=64)
SMALL = UNetConfig(widths=(32, 64), attention=(True, False), heads=(4, 4), blocks=1, context=32, size=8)


@pytest.fixture
def folder(tiny_model: Any, tmp_path: Path) -> Path:
    tiny_model("sd1").save(tmp_path / "model")
    return tmp_path / "model"


def generated(folder: Path, *requests: gradina.Request, **options: str) -> list[torch.Tensor]:
    model = gradina.load(folder, **options)
    return [to_pixels(p.image) for request in requests for p in gradina.generate(model, request)]


@pytest.mark.parametrize(
    ("engine", "dtype", "db"),
    [("eager", "fp32", 45), ("eager", "bf16", 28), ("auto", "fp32", 45), ("auto", "fp16", 40), ("compile", "fp16", 40)],
)
@pytest.mark.filterwarnings("ignore")  # within torch.compile itself
def test_pictures_are_those_of_the_cpu(folder: Path, engine: str, dtype: str, db: float) -> None:
    asked = ASKED, replace(ASKED, images=3, sampler="dpmpp_2m_sde"), replace(ASKED, sampler="heun", width=96), ASKED
    expected = generated(folder, *asked, device="cpu", dtype="fp32")
    got = generated(folder, *asked, device="cuda", dtype=dtype, engine=engine)
    for one, two in zip(expected, got, strict=True):
        assert psnr(one, two, 2.0) > db


def test_pictures_to_start_from_and_masks(
    folder: Path, tmp_path: Path, init: Image.Image, mask: Image.Image
) -> None:  # fmt: skip
    for name, picture in (("init.png", init), ("mask.png", mask)):
        picture.save(tmp_path / name)
    for masked in (None, str(tmp_path / "mask.png")):
        request = replace(ASKED, init_image=str(tmp_path / "init.png"), mask_image=masked, strength=0.7)
        (expected,) = generated(folder, request, device="cpu", dtype="fp32")
        (got,) = generated(folder, request, device="cuda", dtype="fp32")
        assert psnr(expected, got, 2.0) > 45


def test_chunks_give_the_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (expected,) = generated(folder, ASKED, device="cuda", dtype="fp32")
    monkeypatch.setattr(ops, "is_large", lambda x, upsample=1: not torch.is_grad_enabled())
    (got,) = generated(folder, ASKED, device="cuda", dtype="fp32")
    assert psnr(expected, got, 2.0) > 60


def test_cuda_defaults_to_fp16_and_graphs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADINA_DTYPE")
    model = gradina.load(folder)
    assert model.device.type == "cuda"
    assert model.dtype == torch.float16
    assert isinstance(with_engine(model.unet, model.engine), CUDAGraphed)


def inputs(b: int, seed: int) -> tuple[torch.Tensor, ...]:
    key = torch.Generator().manual_seed(seed)
    x, cond = torch.randn(b, 4, 8, 8, generator=key), torch.randn(b, 7, 32, generator=key)
    return x.cuda(), torch.full((b,), 100.0 * seed, device="cuda"), cond.cuda()


def test_replayed_graphs_compute_the_same() -> None:
    torch.manual_seed(0)
    network = UNet(SMALL).cuda().requires_grad_(False)
    graphed, kept = CUDAGraphed(network), []
    with torch.no_grad():
        for seed in range(5):
            for b in (1, 2):
                given = inputs(b, seed)
                kept.append((graphed(*given), network(*given)))
    for got, expected in kept:  # what came out is not written over by the next
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.9)
        torch.testing.assert_close(graphed(*given), network(*given), rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(graphed(*given), network(*given), rtol=1e-4, atol=1e-5)
    assert graphed(*(x.requires_grad_() for x in given)).requires_grad


def test_few_graphs_are_kept() -> None:
    graphed = CUDAGraphed(UNet(SMALL).cuda().requires_grad_(False))
    with torch.no_grad():
        for b in range(1, 2 * MAX_GRAPHS):
            for seed in range(2):
                graphed(*inputs(b, seed))
        assert len(graphed.graphs) == MAX_GRAPHS
        first = inputs(1, 0)
        torch.testing.assert_close(graphed(*first), graphed.network(*first))
