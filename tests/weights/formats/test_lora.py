"""LoRA files: those of diffusers and peft are read, ours open there, and draw the same picture."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file

from gradina import Request, generate, load
from gradina.adapters.lora import ATTENTION, LoRA, LoRAWeights
from gradina.apps.cli.main import main
from gradina.errors import WeightsError
from gradina.images.metadata import read_picture
from gradina.pipeline import conditioning
from gradina.pipeline.model import StableDiffusion
from gradina.weights.formats.lora import read_lora, write_lora

Tiny = Callable[..., StableDiffusion]
ASKED = Request(prompt="a red boat", seed=7, steps=3, width=64, height=64, sampler="ddim", schedule="leading")
ALL = (r".*attn\.(q|k|v|out)", r".*proj_(in|out)", r".*conv\d?", r".*time")


def ours(model: StableDiffusion, *loras: tuple[str, float]) -> np.ndarray[Any, Any]:
    (picture,) = generate(model, replace(ASKED, loras=loras))
    return np.asarray(picture.image).astype(int)


def theirs(folder: Path, lora: Path, scale: float = 1.0) -> np.ndarray[Any, Any]:
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.load_lora_weights(lora.parent, weight_name=lora.name)
    pipe.set_adapters(pipe.get_active_adapters(), scale)
    return drawn(pipe)


def drawn(pipe: Any) -> np.ndarray[Any, Any]:
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    image = pipe("a red boat", num_inference_steps=3, guidance_scale=3.0, latents=noise).images[0]
    return np.asarray(image).astype(int)


@pytest.fixture
def folder(tiny_model: Tiny, tmp_path: Path) -> Path:
    tiny_model("sd1").save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("dialect", ["diffusers", "kohya"])
@pytest.mark.parametrize("alpha", [2.0, 3.0])
def test_round_trip(tiny_model: Tiny, tmp_path: Path, dialect: Any, alpha: float, random_lora: Any) -> None:
    model = tiny_model("sd1")
    made = random_lora(model, alpha)
    write_lora(made, tmp_path / "a.safetensors", model.unet, model.text, dialect)
    read = read_lora(tmp_path / "a.safetensors", model.unet, model.text)
    for part in ("unet", "text"):
        one, other = getattr(made, part), getattr(read, part)
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name].down, other[name].down)
            assert torch.allclose(one[name].product(), other[name].product(), atol=1e-6)
            if dialect == "kohya" or alpha == 2:
                assert torch.equal(one[name].up, other[name].up)
                assert one[name].alpha == other[name].alpha


@pytest.mark.parametrize("dialect", ["diffusers", "kohya"])
def test_diffusers_draws_the_same_with_our_file(folder: Path, tmp_path: Path, dialect: Any, random_layers: Any) -> None:
    model, path = load(folder), tmp_path / "ours.safetensors"
    made = LoRA(unet=random_layers(model.unet, 1, ALL, 3.0), text=random_layers(model.text, 2, ATTENTION, 3.0))
    write_lora(made, path, model.unet, model.text, dialect)
    for scale in (1.0, 0.4):
        mine = ours(model, (str(path), scale))
        assert np.abs(mine - theirs(folder, path, scale)).max() <= 1
        assert np.abs(mine - ours(model)).max() > 10


def test_file_of_diffusers_draws_the_same_here(folder: Path, tmp_path: Path) -> None:
    """Made by peft, with an alpha of its own, and saved by diffusers."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    torch.manual_seed(0)
    how = {"r": 3, "lora_alpha": 5, "init_lora_weights": False}
    pipe.unet.add_adapter(LoraConfig(target_modules=["to_q", "to_v", "to_out.0", "conv1", "proj_in"], **how))
    pipe.text_encoder.add_adapter(LoraConfig(target_modules=["q_proj", "out_proj"], **how))
    parts = {"unet_lora_layers": get_peft_model_state_dict(pipe.unet)}
    parts["text_encoder_lora_layers"] = get_peft_model_state_dict(pipe.text_encoder)
    configs = {"unet_lora_adapter_metadata": pipe.unet.peft_config["default"].to_dict()}
    configs["text_encoder_lora_adapter_metadata"] = pipe.text_encoder.peft_config["default"].to_dict()
    pipe.save_lora_weights(tmp_path, **parts, **configs)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    model = load(folder)
    mine = ours(model, (str(path), 1.0))
    assert np.abs(mine - drawn(pipe)).max() <= 1
    assert np.abs(mine - ours(model)).max() > 10


def renamed(path: Path, target: Path, names: Callable[[str], str]) -> Path:
    save_file({names(name): x for name, x in load_file(path).items()}, target)
    return target


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_alpha_of_any_shape(tiny_model: Tiny, tmp_path: Path, shape: tuple[int, ...]) -> None:
    model, path = tiny_model("sd1"), tmp_path / "a.safetensors"
    head = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora"
    save_file(
        {
            f"{head}.down.weight": torch.ones(2, 32),
            f"{head}.up.weight": torch.ones(32, 2),
            f"{head}.alpha": torch.ones(shape),
        },
        path,
    )
    (read,) = read_lora(path, model.unet, model.text).unet.values()
    assert read.alpha == 1
    assert torch.equal(read.product(), torch.ones(32, 32))


@pytest.mark.parametrize(
    "head", ["lora_te2_text_model_encoder_layers_0_self_attn_q_proj", "text_encoder_2.text_model.a"]
)
def test_second_text_tower_is_ignored_with_a_warning(
    tiny_model: Tiny,
    tmp_path: Path,
    lora_file: tuple[LoRA, dict[str, torch.Tensor]],
    caplog: pytest.LogCaptureFixture,
    head: str,
    assert_same_lora: Any,
) -> None:
    model, path, (made, tensors) = tiny_model("sd1"), tmp_path / "a.safetensors", lora_file
    more = {f"{head}.lora_down.weight": torch.ones(2, 1280), f"{head}.lora_up.weight": torch.ones(1280, 2)}
    save_file(tensors | more, path)
    assert_same_lora(read_lora(path, model.unet, model.text), made)
    (warning,) = caplog.messages
    assert f"2 of its {len(tensors) + 2} tensors are for a second text tower" in warning
    assert f"first: {head}.lora_down.weight" in warning
    save_file(more, path)
    with pytest.raises(WeightsError, match="holds no LoRA for this model"):
        read_lora(path, model.unet, model.text)
    wide = {name: torch.ones(2, 640) if "lora_A" in name else torch.ones(640, 2) for name in tensors if "mid" in name}
    save_file(more | wide, path)
    with pytest.raises(WeightsError, match="it is for Stable Diffusion XL; take one that was made for this family"):
        read_lora(path, model.unet, model.text)


def test_bundled_embeddings_are_ignored_with_a_warning(
    tiny_model: Tiny,
    tmp_path: Path,
    lora_file: tuple[LoRA, dict[str, torch.Tensor]],
    caplog: pytest.LogCaptureFixture,
    assert_same_lora: Any,
) -> None:
    model, path, (made, tensors) = tiny_model("sd1"), tmp_path / "a.safetensors", lora_file
    save_file(tensors | {f"bundle_emb.{x}": torch.ones(2, 32) for x in ("cat.string_to_param.*", "dog.clip_l")}, path)
    assert_same_lora(read_lora(path, model.unet, model.text), made)
    assert caplog.messages == [f"{path}: the embeddings that are bundled with it are ignored (cat, dog)"]


@pytest.mark.parametrize("role", ["lora_down.weight", "lora_up.weight", "alpha"])
def test_warning_of_a_lora_without_effect(
    tiny_model: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture, role: str
) -> None:
    model, path = tiny_model("sd1"), tmp_path / "a.safetensors"
    tensors = {"lora_down.weight": torch.ones(2, 4, 3, 3), "lora_up.weight": torch.ones(32, 2), "alpha": torch.ones(())}
    for changed, warnings_expected in ({}, 0), ({role: tensors[role] * 0}, 1):
        save_file({f"lora_unet_conv_in.{name}": x for name, x in (tensors | changed).items()}, path)
        read_lora(path, model.unet, model.text)
        assert len(caplog.messages) == warnings_expected
    assert caplog.messages == [f"{path}: has no effect, as all 1 layers add 0 (their weights, or alpha, are 0)"]


def test_integer_alpha_is_read_and_integer_weights_are_refused(tiny_model: Tiny, tmp_path: Path) -> None:
    model, path = tiny_model("sd1"), tmp_path / "a.safetensors"
    down, up, alpha = torch.ones(2, 4, 3, 3), torch.ones(32, 2), torch.tensor(1)
    names = [f"lora_unet_conv_in.{role}" for role in ("lora_down.weight", "lora_up.weight", "alpha")]
    save_file(dict(zip(names, (down, up, alpha), strict=True)), path)
    (read,) = read_lora(path, model.unet, model.text).unet.values()
    assert read.alpha == 1
    save_file(dict(zip(names, (down.to(torch.int8), up, alpha), strict=True)), path)
    with pytest.raises(WeightsError, match=f"{names[0]} is int8, expected floating point"):
        read_lora(path, model.unet, model.text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused(
    tiny_model: Tiny, tmp_path: Path, lora_file: tuple[LoRA, dict[str, torch.Tensor]], value: float
) -> None:
    model, path, (_, tensors) = tiny_model("sd1"), tmp_path / "a.safetensors", lora_file
    name = sorted(tensors)[3]
    broken = tensors[name].clone()
    broken.view(-1)[-1] = value
    save_file(tensors | {name: broken}, path)
    with pytest.raises(WeightsError, match=f"a.safetensors: {re.escape(name)} holds NaN or infinite values"):
        read_lora(path, model.unet, model.text)


def test_alpha_is_read_from_the_peft_config_beside_a_file(tiny_model: Tiny, tmp_path: Path, random_layers: Any) -> None:
    model = tiny_model("sd1")
    write_lora(LoRA(text=random_layers(model.text, 1)), tmp_path / "a.safetensors", model.unet, model.text)
    path = renamed(tmp_path / "a.safetensors", tmp_path / "adapter_model.safetensors", lambda n: n.partition(".")[2])
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 16, "r": 2, "use_rslora": False}))
    assert {x.alpha for x in read_lora(path, model.unet, model.text).text.values()} == {16.0}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 16, "r": 2, "use_rslora": True}))
    with pytest.raises(WeightsError, match="was made with use_rslora, which is not supported"):
        read_lora(path, model.unet, model.text)
    for text, message in (("[3", "adapter_config.json: is no JSON"), ('{"lora_alpha": "x"}', "lora_alpha is 'x'")):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(WeightsError, match=message):
            read_lora(path, model.unet, model.text)


def one_by_one(weights: LoRAWeights) -> tuple[torch.Tensor, torch.Tensor]:
    return weights.down.flatten(1), weights.up.flatten(1)


def test_matrix_for_a_1x1_convolution(tiny_model: Tiny, tmp_path: Path, random_layers: Any) -> None:
    model = tiny_model("sd1")
    (made,) = random_layers(model.unet, 1, (r"mid\.attn\.proj_in",)).values()
    down, up = one_by_one(made)
    head, path = "unet.mid_block.attentions.0.proj_in", tmp_path / "a.safetensors"
    save_file({f"{head}.lora_A.weight": down, f"{head}.lora_B.weight": up}, path)
    (read,) = read_lora(path, model.unet, model.text).unet.values()
    assert torch.equal(read.product(), made.product())


WRONG = [
    ({"unet.conv_in.lora_A.weight": (2, 4, 3, 3)}, "conv_in of unet has down, expected down and up"),
    (
        {"unet.conv_in.hada_w1_a": (2, 2), "unet.conv_in.hada_w1_b": (2, 2), "unet.conv_in.alpha": ()},
        r"2 of its tensors are those of LoHa \(first: unet.conv_in.hada_w1_a\), which is no plain LoRA",
    ),
    ({"unet.conv_in.lokr_w1": (2, 2)}, "1 of its tensors are those of LoKr"),
    ({"unet.conv_in.lora_mid.weight": (2, 2)}, "1 of its tensors are those of LoCon with a middle"),
    ({"unet.conv_in.dora_scale": (2, 2)}, "1 of its tensors are those of DoRA"),
    ({"unet.conv_in.diff": (2, 2)}, "1 of its tensors are those of full differences"),
    (
        {f"unet.conv_in.lora_{role}.{name}.weight": (2, 2) for role in "AB" for name in ("one", "two")},
        "unet.conv_in.lora_A.one.weight and unet.conv_in.lora_A.two.weight are the same; expected one LoRA in a file",
    ),
    ({"unet.conv_in.lora_A.weight": (2,), "unet.conv_in.lora_B.weight": ()}, r"conv_in has down \(2,\), up \(\);"),
    (
        {"unet.conv_in.lora_A.weight": (0, 4, 3, 3), "unet.conv_in.lora_B.weight": (32, 0, 1, 1)},
        "expected two matrices or convolutions",
    ),
    (
        {"unet.conv_in.lora_A.weight": (2, 4, 3, 3), "unet.conv_in.lora_B.weight": (32, 1, 1, 1)},
        "conv_in: the LoRA is for a layer of shape",
    ),
    ({"conv_in.weight": (2, 2)}, r"holds no LoRA for this model \(first of its names: conv_in.weight\)"),
    (
        {"unet.conv_in.lora_A.weight": (2, 4, 3, 3), "unet.conv_in.lora_B.weight": (32, 2, 1, 1), "x.alpha": ()},
        r"1 of its names fit no layer of this model \(first: x.alpha\)",
    ),
]


@pytest.mark.parametrize(("tensors", "message"), WRONG)
def test_other_tensors_are_refused(tiny_model: Tiny, tmp_path: Path, tensors: Any, message: str) -> None:
    model, path = tiny_model("sd1"), tmp_path / "a.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, path)
    with pytest.raises(WeightsError, match=message):
        read_lora(path, model.unet, model.text)


SHAPES = st.lists(st.integers(0, 3), max_size=5).map(tuple) | st.sampled_from([(2, 32), (32, 2), (2, 32, 1, 1)])
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool, torch.complex64)


@given(
    layer=st.sampled_from(["conv_in", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"]),
    roles=st.dictionaries(
        st.sampled_from(["lora_down.weight", "lora_up.weight", "alpha", "lora_mid.weight", "x"]),
        st.tuples(SHAPES, st.sampled_from(DTYPES), st.floats()),
        min_size=1,
    ),
)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_tensors_are_read_or_refused_by_name(
    tiny_model: Tiny, tmp_path: Path, layer: str, roles: dict[str, Any], refused_by_name: Any
) -> None:
    model, path = tiny_model("sd1"), tmp_path / "a.safetensors"
    tensors = {f"unet.{layer}.{role}": torch.ones(shape) * value for role, (shape, _, value) in roles.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values out of a dtype's range
        save_file({name: x.to(roles[name.removeprefix(f"unet.{layer}.")][1]) for name, x in tensors.items()}, path)
    with refused_by_name(path):
        read = read_lora(path, model.unet, model.text)
        assert all(torch.isfinite(x.product()).all() for x in read.unet.values())


def test_lora_of_another_family_is_refused_before_drawing(tiny_model: Tiny, tmp_path: Path) -> None:
    model, path = tiny_model("sd1"), tmp_path / "a.safetensors"
    head = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    save_file({f"{head}.lora_A.weight": torch.zeros(2, 99), f"{head}.lora_B.weight": torch.zeros(64, 2)}, path)
    with pytest.raises(
        WeightsError, match=r"cross_attn.k: the LoRA is for a layer of shape 64x99, this model's has 64x"
    ):
        generate(model, replace(ASKED, loras=((str(path), 1.0),)))


def test_stack_is_read_once_and_leaves_the_model_unchanged(
    tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_layers: Any, random_lora: Any
) -> None:
    model, path, other = tiny_model("sd1"), tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    before = ours(model)
    write_lora(random_lora(model), path, model.unet, model.text)
    write_lora(LoRA(text=random_layers(model.text, 7)), other, model.unet, model.text, "kohya")
    read: list[object] = []
    monkeypatch.setattr(conditioning, "read_lora", lambda path, *parts: (read.append(path), read_lora(path, *parts))[1])
    stack = ((str(path), 0.5), (str(other), 2.0))
    one, again = ours(model, *stack), ours(model, *stack)
    assert read == [str(path), str(other)]
    assert np.array_equal(one, again)
    assert np.abs(one - ours(model, stack[0])).max() > 3
    assert np.abs(ours(model, (str(path), 0.0)) - before).max() == 0
    assert np.array_equal(ours(model), before)
    write_lora(random_lora(model, 6.0), path, model.unet, model.text)
    os.utime(path, ns=(1, 1))
    assert np.abs(ours(model, *stack) - one).max() > 3, "another file of that name"


def test_from_the_command_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], random_lora: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    model = load(folder)
    write_lora(random_lora(model), "boat.safetensors", model.unet, model.text)
    asked = ["a red boat", "-m", "model", "--seed", "7", "--steps", "3"]
    assert main([*asked, "--lora", "boat.safetensors:0.5", "--lora", "boat.safetensors:0.25", "-o", "a.png"]) == 0
    record = read_picture("a.png")
    assert record.request.loras == (("boat.safetensors", 0.5), ("boat.safetensors", 0.25))
    assert main(["again", "a.png", "-o", "b.png"]) == 0
    assert main([*asked, "-o", "c.png"]) == 0
    a, b, c = (np.asarray(Image.open(name)).astype(int) for name in ("a.png", "b.png", "c.png"))
    assert np.array_equal(a, b)
    assert np.abs(a - c).max() > 3
    assert main([*asked, "--grid", "loras=boat.safetensors:0|boat.safetensors:0.5+boat.safetensors:0.25"]) == 0
    assert main([*asked, "--lora", "nothing.safetensors"]) == 2
    assert "nothing.safetensors: there is no such file" in capsys.readouterr().err
    Path("a.png").unlink()
    assert main([*asked, "--lora", "model/unet/diffusion_pytorch_model.safetensors", "-o", "a.png"]) == 2
    assert "holds no LoRA for this model" in capsys.readouterr().err
    assert not Path("a.png").exists()
