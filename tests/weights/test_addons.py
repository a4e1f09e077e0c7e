"""What goes with a model, in whatever file it lies, becomes safetensors that draw the same."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradina.adapters.lora import LoRA, LoRAWeights, fresh
from gradina.apps.cli.main import main
from gradina.errors import WeightsError
from gradina.pipeline.model import StableDiffusion
from gradina.weights.convert import convert
from gradina.weights.formats.lora import lora_state_dict, read_lora
from gradina.weights.formats.textual_inversion import read_embedding

Tiny = Callable[..., StableDiffusion]
VECTORS = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def lora(tiny_model: Tiny) -> LoRA:
    model, key = tiny_model("sd1"), torch.Generator().manual_seed(0)
    return LoRA(
        *(
            {
                n: LoRAWeights(x.down, torch.randn(x.up.shape, generator=key), 3.0)
                for n, x in fresh(part, 2, key).items()
            }
            for part in (model.unet, model.text)
        )
    )


def assert_same(one: LoRA, other: LoRA) -> None:
    for part in ("unet", "text"):
        left, right = getattr(one, part), getattr(other, part)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name].product(), right[name].product()) for name in left)


@pytest.mark.parametrize("name", ["lora.pt", "pytorch_lora_weights.bin", "lora.ckpt", "lora", "lora.safetensors"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_pickled_lora_is_converted(tiny_model: Tiny, tmp_path: Path, lora: LoRA, name: str, wrapped: bool) -> None:
    """Also one whose tensors share their memory, and one under the name of another kind of file."""
    model, source = tiny_model("sd1"), tmp_path / name
    tensors = lora_state_dict(lora, model.unet, model.text, "kohya")
    alphas = torch.full((2,), 3.0)
    tensors |= {key: alphas[0] for key in tensors if key.endswith("alpha")}
    torch.save({"state_dict": OrderedDict(tensors), "epoch": 3} if wrapped else tensors, source)
    target = convert(source, tmp_path / "l.safetensors")
    assert_same(read_lora(target, model.unet, model.text), lora)
    assert load_file(target).keys() == tensors.keys()
    half = load_file(convert(source, tmp_path / "half.safetensors", dtype=torch.float16))
    assert {x.dtype for x in half.values()} == {torch.float16}
    with pytest.raises(WeightsError, match=f"{name}: a LoRA is one file; end the name in .safetensors, got .*folder"):
        convert(source, tmp_path / "folder")


def test_what_peft_says_beside_its_file_goes_with_it(tiny_model: Tiny, tmp_path: Path, lora: LoRA) -> None:
    model = tiny_model("sd1")
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
    ("content", "words"),
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
def test_what_is_not_converted_is_named(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=f"a.pt: {words}"):
        convert(tmp_path / "a.pt", tmp_path / "b.safetensors")


WORDS: dict[str, tuple[Any, str]] = {
    "a1111": ({"string_to_token": {"*": 265}, "string_to_param": {"*": VECTORS}, "name": "my style"}, "my-style"),
    "a1111, without a name": ({"string_to_param": {"*": VECTORS}, "name": None}, "its-own"),
    "its authors'": ({"string_to_param": {"<Toy>": VECTORS}}, "<toy>"),
    "diffusers": ({"<Toy>": VECTORS}, "<toy>"),
    "comfy": ({"clip_l": VECTORS}, "its-own"),
}


@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("name", ["its own.pt", "its own.bin", "its own.ckpt", "its own"])
def test_words_are_converted_and_told(tmp_path: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, word = WORDS[kind]
    torch.save(content, tmp_path / name)
    target = tmp_path / "w.safetensors"
    assert main(["convert", str(tmp_path / name), str(target)]) == 0
    assert f"w.safetensors: is the embedding of {word}; write that in prompts" in capsys.readouterr().err
    read = read_embedding(target)
    assert read.token == word
    assert torch.equal(read.vectors, VECTORS)


def test_a_word_in_safetensors_is_converted_too(tmp_path: Path) -> None:
    save_file({"emb_params": VECTORS}, tmp_path / "My Style.safetensors")
    target = convert(tmp_path / "My Style.safetensors", tmp_path / "w.safetensors", dtype=torch.float16)
    assert {name: x.dtype for name, x in load_file(target).items()} == {"my-style": torch.float16}


def test_a_tiny_decoder_is_converted(tmp_path: Path) -> None:
    """As its author publishes it: taesd_decoder.pth."""
    tensors = {"1.weight": torch.ones(8, 4, 3, 3), "3.conv.0.weight": torch.ones(8, 8, 3, 3)}
    torch.save(tensors, tmp_path / "taesd_decoder.pth")
    target = convert(tmp_path / "taesd_decoder.pth", tmp_path / "taesd_decoder.safetensors")
    assert load_file(target).keys() == tensors.keys()
