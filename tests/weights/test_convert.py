"""Between the layouts, in both directions, equal to the bit; and files of adapters, which become safetensors."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gradina.adapters.lora import LoRA
from gradina.apps.cli.main import main
from gradina.errors import WeightsError
from gradina.pipeline.model import StableDiffusion
from gradina.weights.convert import convert
from gradina.weights.formats.diffusers import read_folder, write_folder
from gradina.weights.formats.ldm import read_file, write_file
from gradina.weights.formats.lora import lora_state_dict, read_lora
from gradina.weights.formats.textual_inversion import read_embedding

FORMS = ("sd1", "sd2", "inpainting", "three levels")


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "README.md"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_folder_to_file_and_back(form, dtype, tiny, tmp_path):
    write_folder(tiny(form), tmp_path / "one", dtype=dtype)
    file = convert(tmp_path / "one", tmp_path / "model.safetensors")
    assert convert(file, tmp_path / "two") == tmp_path / "two"
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_file_to_folder_and_back(tiny, tmp_path):
    write_file(tiny("sd2"), tmp_path / "tiny.safetensors")
    convert(tmp_path / "tiny.safetensors", tmp_path / "tiny")
    (tmp_path / "back").mkdir()
    convert(tmp_path / "tiny", tmp_path / "back" / "tiny.safetensors")
    assert (tmp_path / "back" / "tiny.safetensors").read_bytes() == (tmp_path / "tiny.safetensors").read_bytes()


@pytest.mark.parametrize("form", ["sd1", "sd2"])
def test_checkpoint_pickle_is_converted(form, tiny, assert_same, tmp_path):
    write_file(tiny(form), tmp_path / "tiny.safetensors")
    state = load_file(tmp_path / "tiny.safetensors")
    torch.save({"state_dict": state, "global_step": np.int64(3)}, tmp_path / "tiny.ckpt")
    prediction = tiny(form).prediction
    file = convert(tmp_path / "tiny.ckpt", tmp_path / "out.safetensors", prediction=prediction)
    back = load_file(file)
    assert back.keys() == state.keys()
    assert all(torch.equal(x, state[name]) for name, x in back.items())
    assert read_file(file).prediction == prediction
    folder = convert(tmp_path / "tiny.ckpt", tmp_path / "out", prediction=prediction)
    assert torch.equal(read_folder(folder).unet.conv_in.weight, tiny(form).unet.conv_in.weight)


@pytest.mark.parametrize("name", ["tiny.ckpt", "wrapped.safetensors"])
def test_wrapper_prefixes_of_trainers_are_removed(name, saved, tmp_path):
    state = load_file(saved(tmp_path / "tiny.safetensors"))
    wrapped = {f"module.{key}": x for key, x in state.items()}
    if name.endswith(".ckpt"):
        torch.save({"module": wrapped}, tmp_path / name)
    else:
        save_file(wrapped, tmp_path / name)
    back = load_file(convert(tmp_path / name, tmp_path / "out.safetensors"))
    assert back.keys() == state.keys()


def test_dtype_is_converted(tiny, tmp_path):
    write_folder(tiny(), tmp_path / "one")
    convert(tmp_path / "one", tmp_path / "half", dtype=torch.float16)
    assert {p.dtype for p in read_folder(tmp_path / "half").text.parameters()} == {torch.float16}


def test_refused_conversions(tiny, tmp_path):
    write_folder(tiny(), tmp_path / "one")
    with pytest.raises(WeightsError, match="pickles are not written"):
        convert(tmp_path / "one", tmp_path / "model.ckpt")
    with pytest.raises(WeightsError, match="no such folder or file"):
        convert(tmp_path / "none", tmp_path / "two")
    torch.save({"a": torch.zeros(1)}, tmp_path / "odd.ckpt")
    with pytest.raises(WeightsError, match="of an unknown kind"):
        convert(tmp_path / "odd.ckpt", tmp_path / "two")
    assert not (tmp_path / "two").exists()


Tiny = Callable[..., StableDiffusion]
VECTORS = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["lora.pt", "pytorch_lora_weights.bin", "lora.ckpt", "lora", "lora.safetensors"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_pickled_lora_is_converted(
    tiny_model: Tiny, tmp_path: Path, random_lora: Any, assert_same_lora: Any, name: str, wrapped: bool
) -> None:
    """Also with tensors that share memory, and under the name of another kind of file."""
    model, source = tiny_model("sd1"), tmp_path / name
    lora = random_lora(model, 3.0)
    tensors = lora_state_dict(lora, model.unet, model.text, "kohya")
    alphas = torch.full((2,), 3.0)
    tensors |= {key: alphas[0] for key in tensors if key.endswith("alpha")}
    torch.save({"state_dict": OrderedDict(tensors), "epoch": 3} if wrapped else tensors, source)
    target = convert(source, tmp_path / "l.safetensors")
    assert_same_lora(read_lora(target, model.unet, model.text), lora)
    assert load_file(target).keys() == tensors.keys()
    half = load_file(convert(source, tmp_path / "half.safetensors", dtype=torch.float16))
    assert {x.dtype for x in half.values()} == {torch.float16}
    with pytest.raises(WeightsError, match=f"{name}: a LoRA is one file; end the name in .safetensors, got .*folder"):
        convert(source, tmp_path / "folder")


def test_peft_config_beside_a_file_becomes_metadata(tiny_model: Tiny, tmp_path: Path, random_lora: Any) -> None:
    model = tiny_model("sd1")
    lora = random_lora(model)
    tensors = {
        f"base_model.model.{name.partition('.')[2]}": x
        for name, x in lora_state_dict(LoRA(unet=lora.unet), model.unet, model.text).items()
    }
    torch.save(tensors, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 16, "r": 2, "peft_type": "LORA"}))
    (tmp_path / "there").mkdir()
    target = convert(tmp_path / "adapter_model.bin", tmp_path / "there" / "l.safetensors")
    assert {x.alpha for x in read_lora(target, model.unet, model.text).unet.values()} == {16.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"lora_unet_conv_in.hada_w1_a": torch.ones(2, 2)}, "1 of its tensors are those of LoHa"),
        ([torch.ones(2, 2), torch.ones(2, 2)], "holds 2 tensors without names"),
        (
            {"string_to_param": {"<a>": VECTORS, "<b>": VECTORS}},
            r"holds 2 embeddings \(<a>, <b>\); expected one",
        ),
        ({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)}, "is for SDXL, with vectors for two text"),
        ({"<toy>": torch.full((1, 32), float("nan"))}, "<toy> holds NaN or infinite values"),
        ({"a": torch.ones(3, 3, 3)}, "is of an unknown kind"),
    ],
)
def test_refused_files_are_named(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=f"a.pt: {message}"):
        convert(tmp_path / "a.pt", tmp_path / "b.safetensors")


EMBEDDINGS: dict[str, tuple[Any, str]] = {
    "a1111": ({"string_to_token": {"*": 265}, "string_to_param": {"*": VECTORS}, "name": "my style"}, "my-style"),
    "a1111, without a name": ({"string_to_param": {"*": VECTORS}, "name": None}, "its-own"),
    "its authors'": ({"string_to_param": {"<Toy>": VECTORS}}, "<toy>"),
    "diffusers": ({"<Toy>": VECTORS}, "<toy>"),
    "comfy": ({"clip_l": VECTORS}, "its-own"),
}


@pytest.mark.parametrize("kind", EMBEDDINGS)
@pytest.mark.parametrize("name", ["its own.pt", "its own.bin", "its own.ckpt", "its own"])
def test_pickled_embeddings_are_converted_and_named(
    tmp_path: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content, token = EMBEDDINGS[kind]
    torch.save(content, tmp_path / name)
    target = tmp_path / "w.safetensors"
    assert main(["convert", str(tmp_path / name), str(target)]) == 0
    assert f"w.safetensors: is the embedding of {token}; write that in prompts" in capsys.readouterr().err
    read = read_embedding(target)
    assert read.token == token
    assert torch.equal(read.vectors, VECTORS)


def test_safetensors_embedding_is_converted(tmp_path: Path) -> None:
    save_file({"emb_params": VECTORS}, tmp_path / "My Style.safetensors")
    target = convert(tmp_path / "My Style.safetensors", tmp_path / "w.safetensors", dtype=torch.float16)
    assert {name: x.dtype for name, x in load_file(target).items()} == {"my-style": torch.float16}


def test_tiny_decoder_is_converted(tmp_path: Path) -> None:
    """As its author publishes it: taesd_decoder.pth."""
    tensors = {"1.weight": torch.ones(8, 4, 3, 3), "3.conv.0.weight": torch.ones(8, 8, 3, 3)}
    torch.save(tensors, tmp_path / "taesd_decoder.pth")
    target = convert(tmp_path / "taesd_decoder.pth", tmp_path / "taesd_decoder.safetensors")
    assert load_file(target).keys() == tensors.keys()
