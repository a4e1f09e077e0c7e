"""Engines compute the same: whichever is chosen, the picture stays what it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradina
from gradina.errors import MissingExtra, RequestError
from gradina.images.tensor import to_pixels
from gradina.runtime import device, engines
from gradina.runtime.engines import VAEDecode, with_engine
from gradina.runtime.openvino import OpenVINOModule
from gradina.tasks.metrics import psnr

ASKED = gradina.Request(prompt="a fox", steps=4, seed=3, guidance_scale=4.0, sampler="ddim", width=64, height=64)


@pytest.fixture
def folder(tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    tiny_model("sd1").save(tmp_path / "model")
    return tmp_path / "model"


def generated(folder: Path, request: gradina.Request, **options: str) -> list[gradina.Picture]:
    return list(gradina.generate(gradina.load(folder, device="cpu", **options), request))


def exports(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder.parent / "cache" / "openvino").rglob("*.xml")}


def test_openvino_generates_the_same_and_caches_exports(folder: Path) -> None:
    request = replace(ASKED, images=3)
    eager = generated(folder, request, engine="eager")
    other = generated(folder, request, engine="openvino")
    for one, two in zip(eager, other, strict=True):
        assert psnr(to_pixels(one.image), to_pixels(two.image), 2.0) > 40
        assert two.model is not None
        assert two.model["engine"] == "openvino"
        assert one.model is not None
        assert "engine" not in one.model
    made = exports(folder)
    assert len(made) == 2, "three guided pictures are six examples, two at a time; and the decoder"
    generated(folder, request, engine="openvino")
    assert exports(folder) == made, "what was made is used again"
    generated(folder, replace(request, width=96), engine="openvino")
    assert len(exports(folder)) == 4, "each shape has its own"


def test_exports_are_cached_by_weights(folder: Path, tiny_model: Any) -> None:
    gradina.load(folder, device="cpu", engine="openvino")
    generated(folder, ASKED, engine="openvino")
    before = exports(folder)
    network = torch.nn.Linear(3, 2).requires_grad_(False)
    x = torch.randn(2, 3)
    for _ in range(2):
        same = OpenVINOModule(network)
        torch.testing.assert_close(same(x), network(x), rtol=1e-3, atol=1e-3)
    assert len(exports(folder)) == len(before) + 1
    with torch.no_grad():
        network.weight += 1
    torch.testing.assert_close(OpenVINOModule(network)(x), network(x), rtol=1e-3, atol=1e-3)
    assert len(exports(folder)) == len(before) + 2


def test_exports_are_cached_by_dtype(folder: Path) -> None:
    generated(folder, ASKED, engine="openvino", dtype="bf16")
    assert len(exports(folder)) == 2
    (exact,) = generated(folder, ASKED, engine="eager")
    (after,) = generated(folder, ASKED, engine="openvino")
    assert len(exports(folder)) == 4, "rounded weights are others"
    assert psnr(to_pixels(exact.image), to_pixels(after.image), 2.0) > 40


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # within torch.compile itself
def test_compiled_networks_compute_the_same() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 2)).requires_grad_(False)
    x = torch.randn(2, 4)
    with torch.no_grad():
        torch.testing.assert_close(with_engine(network, "compile")(x), network(x))


def test_the_compiler_sees_each_network_whole(tiny_model: Any) -> None:
    model = tiny_model("sd1")
    z, t, cond = torch.randn(2, 4, 8, 8), torch.full((2,), 500.0), torch.randn(2, 7, 32)
    works: list[tuple[torch.nn.Module, tuple[torch.Tensor, ...]]] = [
        (model.unet, (z, t, cond)),
        (VAEDecode(model.vae), (z,)),
    ]
    for network, inputs in works:
        whole = torch.compile(network, backend="eager", fullgraph=True)  # raises where it would have to cut
        with torch.no_grad():
            torch.testing.assert_close(whole(*inputs), network(*inputs))


def test_auto_takes_a_ready_export_where_there_is_no_attention_kernel(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    ran: list[str] = []
    network = torch.nn.Linear(3, 2).requires_grad_(False)
    plain = network.forward
    monkeypatch.setattr(network, "forward", lambda x: (ran.append("eager"), plain(x))[1])
    run = OpenVINOModule._run
    monkeypatch.setattr(OpenVINOModule, "_run", lambda self, inputs: (ran.append("openvino"), run(self, inputs))[1])
    monkeypatch.setattr(engines, "available", lambda operation, dtype: False)
    x, auto = torch.randn(2, 3), with_engine(network, "auto")
    auto(x)
    assert ran == ["eager"], "nothing is ready, and nothing is made"
    monkeypatch.setattr(network, "forward", plain)
    with_engine(network, "openvino")(x)
    auto(x)
    assert ran == ["eager", "openvino", "openvino"]
    monkeypatch.setattr(engines, "available", lambda operation, dtype: True)
    assert with_engine(network, "auto") is network


def test_mistakes_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=r"engine: there is no 'fast' .choices: auto, eager, compile, openvino"):
        gradina.load(folder, device="cpu", engine="fast")
    with pytest.raises(RequestError, match=r"engine: openvino computes on the CPU, not on meta; give device cpu"):
        device.pick_engine("openvino", torch.device("meta"))
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"openvino is an extra; install it with: pip install 'gradina\[openvino\]'"):
        gradina.load(folder, device="cpu", engine="openvino")


def test_a_picture_is_made_again_by_its_engine(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from gradina.apps.cli.main import main

    monkeypatch.chdir(tmp_path)
    options = ["-m", str(folder), "--engine", "openvino", "--steps", "3", "--seed", "4", "--quiet"]
    assert main(["a fox", *options, "-o", "a.png"]) == 0
    assert main(["again", "a.png", "-o", "b.png", "--quiet"]) == 0
    assert main(["again", "a.png", "--engine", "eager", "-o", "c.png", "--quiet"]) == 0
    a, b, c = (np.asarray(Image.open(name)).astype(int) for name in ("a.png", "b.png", "c.png"))
    assert (a == b).all()
    assert np.abs(a - c).mean() < 2
