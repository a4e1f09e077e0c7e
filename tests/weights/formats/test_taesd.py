"""Tiny decoders equal diffusers' AutoencoderTiny, in either layout, and draw previews."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import gradina
from gradina.errors import WeightsError
from gradina.models.taesd import TinyConfig, TinyDecoder
from gradina.models.vae import VAEConfig
from gradina.pipeline.model import StableDiffusion
from gradina.weights.convert import convert
from gradina.weights.formats.taesd import read_taesd

WEIGHTS = "diffusion_pytorch_model.safetensors"
SHAPES = {"taesd": {}, "another": {"decoder_block_out_channels": (16, 16, 16), "num_decoder_blocks": (1, 2, 3),
                                    "encoder_block_out_channels": (16, 16, 16), "num_encoder_blocks": (1, 1, 1),
                                    "latent_channels": 6}}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "taesd", {})


def write(folder: Path, shape: Mapping[str, object]) -> Path:
    """A folder written by diffusers, with random weights."""
    from diffusers import AutoencoderTiny

    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoencoderTiny(**shape).save_pretrained(folder)
    return folder


def vae(shape: Mapping[str, Any]) -> VAEConfig:
    """An autoencoder of such latents."""
    widths = (8,) * len(shape.get("num_decoder_blocks", (3, 3, 3, 1)))
    return VAEConfig(latent_channels=shape.get("latent_channels", 4), widths=widths)


def original(folder: Path) -> Path:
    """The same in the original layout: one file for the decoder, whose first layer has no weights."""
    tensors: dict[str, Tensor] = {}
    for name, x in load_file(folder / WEIGHTS).items():
        if name.startswith("decoder.layers."):
            number, rest = name.removeprefix("decoder.layers.").split(".", 1)
            tensors[f"{int(number) + 1}.{rest}"] = x
    save_file(tensors, folder / "taesd_decoder.safetensors")
    return folder / "taesd_decoder.safetensors"


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_equals_autoencoder_tiny(shape: Mapping[str, object], tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    path = write(tmp_path / "tiny", shape)
    theirs, ours = AutoencoderTiny.from_pretrained(path), read_taesd(path, vae(shape))
    z = 3 * torch.randn(2, ours.config.latent_channels, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = theirs.decode(z).sample
    torch.testing.assert_close(ours(z), expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(read_taesd(original(path), vae(shape))(z), expected, rtol=1e-5, atol=2e-5)
    assert expected.shape[2] == 5 * ours.config.factor


def test_config_from_names(folder: Path) -> None:
    assert read_taesd(folder, VAEConfig()).config == read_taesd(original(folder), VAEConfig()).config == TinyConfig()


def test_only_its_files_are_fetched_from_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **given: asked.update(given) or str(folder))
    assert isinstance(read_taesd("madebyollin/taesd", VAEConfig()), TinyDecoder)
    assert asked == {"allow_patterns": ["config.json", WEIGHTS]}


def _settings(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def _without(folder: Path, name: str) -> Path:
    kept = {key: x for key, x in load_file(folder / WEIGHTS).items() if key != name}
    save_file(kept, folder / WEIGHTS)
    return folder


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nowhere": (lambda f: f / "nothing", "nothing: there is no such tiny decoder; expected a folder of an Autoencoder"),
    "another network": (lambda f: _settings(f, _class_name="AutoencoderKL"), "is the config of AutoencoderKL"),
    "another activation": (lambda f: _settings(f, act_fn="silu"), "has {'act_fn': 'silu'}, expected {'act_fn'"),
    "no settings": (lambda f: (f / "config.json").write_text("[]") and f, "config.json: expected a JSON object"),
    "no decoder": (lambda f: _without(f, "decoder.layers.0.weight"), "is no tiny decoder"),
    "a layer is missing": (lambda f: _without(f, "decoder.layers.6.weight"), "decoder.layers.6.weight"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), WRONG.values(), ids=WRONG)
def test_other_files_are_refused(damage: Callable[[Path], Path], message: str, folder: Path) -> None:
    with pytest.raises(WeightsError) as error:
        read_taesd(str(damage(folder)), VAEConfig())
    assert message in str(error.value)


def test_previews_use_the_tiny_decoder(
    folder: Path, tmp_path: Path, tiny_model: Callable[..., StableDiffusion]
) -> None:
    tiny_model("sd1").save(tmp_path / "model")
    model = gradina.load(tmp_path / "model", tiny=folder)
    plain, lean = gradina.load(tmp_path / "model"), gradina.load(tmp_path / "model", tiny=folder, low_memory=True)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert [p.tobytes() for p in model.decode(z)] == [p.tobytes() for p in plain.decode(z)]
    assert [p.tobytes() for p in plain.preview(z)] == [p.tobytes() for p in plain.decode(z)]
    rough = model.preview(z)
    with torch.no_grad():
        expected = read_taesd(folder, VAEConfig())(z).add(1).mul(127.5).clamp(0, 255).round()
    assert [p.size for p in rough] == [(64, 64)] * 2
    got = torch.stack([torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).view(64, 64, 3) for p in rough])
    assert (got.permute(0, 3, 1, 2).float() - expected).abs().max() <= 1
    assert [p.tobytes() for p in lean.preview(z)] == [p.tobytes() for p in rough]


def test_other_latents_are_refused(tmp_path: Path, tiny_model: Callable[..., StableDiffusion]) -> None:
    tiny_model("sd1").save(tmp_path / "model")
    with pytest.raises(
        WeightsError, match=r"is for latents of 6 channels that are 4 times smaller .* have 4 and are 8"
    ):
        gradina.load(tmp_path / "model", tiny=write(tmp_path / "tiny", SHAPES["another"]))


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_pickle_is_refused_and_converted(layout: str, folder: Path, tmp_path: Path) -> None:
    file = original(folder) if layout == "original" else folder / WEIGHTS
    pickle = tmp_path / "taesd_decoder.pth"
    torch.save(load_file(file), pickle)
    with pytest.raises(
        WeightsError, match=r"`gradina convert .*taesd_decoder\.pth taesd_decoder\.safetensors` reads it"
    ):
        read_taesd(pickle, vae({}))
    with pytest.raises(WeightsError, match="a tiny decoder is one file"):
        convert(pickle, tmp_path / "out")
    back = read_taesd(convert(pickle, tmp_path / "out.safetensors"), vae({})).state_dict()
    assert all(torch.equal(x, back[name]) for name, x in read_taesd(file, vae({})).state_dict().items())
