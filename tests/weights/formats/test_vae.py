"""Another autoencoder than the model's own, in every form in which one is published."""

import json
import logging
import shutil
from dataclasses import replace

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gradina.errors import WeightsError
from gradina.models.vae import AutoencoderKL, VAEConfig
from gradina.weights.components import Components
from gradina.weights.convert import convert
from gradina.weights.formats.diffusers import write_folder
from gradina.weights.formats.ldm import write_file
from gradina.weights.open import open_source, with_vae


def other(scale: float = 0.18215, **more) -> AutoencoderKL:
    """An autoencoder that is not the model's own."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return AutoencoderKL(VAEConfig(**{"widths": (32, 64), "blocks": 1, "scale": scale} | more)).eval()


@pytest.fixture
def parts(tiny) -> Components:
    return tiny()


@pytest.fixture
def source(tmp_path):
    return tmp_path / "vae.safetensors"


FORMS = ("original", "prefixed", "diffusers", "older", "folder", "model", "whole", "wrapped")


def published(form: str, parts: Components, vae: AutoencoderKL, at):
    """Writes that autoencoder in a published form, at or beside `at`; returns its path."""
    folder, whole = at.with_name("model"), at.with_name("whole.safetensors")
    theirs = replace(parts, vae=vae)
    if form in ("whole", "original", "prefixed", "wrapped"):
        write_file(theirs, whole)
        tensors = {n: x for n, x in load_file(whole).items() if n.startswith("first_stage_model.")}
        names = {"original": "", "wrapped": "state_dict.first_stage_model."}.get(form, "first_stage_model.")
        save_file({n.replace("first_stage_model.", names): x for n, x in tensors.items()}, at)
        return whole if form == "whole" else at
    write_folder(theirs, folder)
    tensors = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        if form == "older":
            tensors = {n.replace(f".{new}.", f".{old}."): x for n, x in tensors.items()}
    save_file(tensors, at)
    return {"folder": folder / "vae", "model": folder}.get(form, at)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form, parts, source):
    vae = other()
    changed = with_vae(parts, published(form, parts, vae, source))
    assert changed.vae.config == vae.config
    assert all(torch.equal(x, vae.state_dict()[name]) for name, x in changed.vae.state_dict().items())
    assert changed.unet is parts.unet
    assert changed.about["vae"] == changed.vae_source
    assert len(changed.about["vae_hash"]) == 10
    assert (changed.hash, parts.about) == (parts.hash, {"name": "tiny"})


def test_scale_and_groups_default_to_those_of_the_model(parts, source):
    own = replace(parts, vae=other(scale=0.9, groups=16))
    alone = published("original", parts, other(scale=0.9, groups=16), source)
    assert with_vae(own, alone).vae.config == own.vae.config
    assert with_vae(parts, alone).vae.config == parts.vae.config


def test_other_scale_is_read_with_a_warning(parts, source, caplog):
    folder = published("folder", parts, other(scale=0.5), source)
    with caplog.at_level(logging.WARNING):
        assert with_vae(parts, folder).vae.config.scale == 0.5
    assert "scales latents by 0.5, the model's own autoencoder by 0.18215" in caplog.text


def test_file_written_by_diffusers_decodes_the_same(parts, tmp_path):
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(32, 64), layers_per_block=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path / "vae")
    ours = with_vae(parts, tmp_path / "vae" / "diffusion_pytorch_model.safetensors").vae
    z = torch.randn(1, 4, 4, 4)
    assert torch.allclose(theirs.decode(z / 0.18215).sample, ours.decode(z), atol=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"latent_channels": 16}, "latents of 16 channels, 2 times smaller.*those of this model have 4"),
        ({"widths": (32, 64, 64)}, "4 times smaller than pictures of 3; those of this model have 4, 2 times smaller"),
        ({"channels": 1}, "2 times smaller than pictures of 1"),
    ],
)
def test_other_latents_are_refused(more, message, parts, source):
    vae = other(**more)
    with_one = {f"first_stage_model.{n}": x for n, x in original(vae).items()}
    save_file(with_one, source)
    with pytest.raises(WeightsError, match=message) as caught:
        with_vae(parts, source)
    assert str(caught.value).startswith(f"{source}: ")


def original(vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    from gradina.weights.key_tables import VAE, vae_indices
    from gradina.weights.remap import sources, write

    return write(vae.state_dict(), sources(vae.state_dict(), VAE, "original", vae_indices(vae.config)))


def test_other_files_are_named(parts, source, tmp_path):
    for name, message in (
        ("lora_unet_conv_in.lora_down.weight", "is a LoRA adapter; expected an autoencoder"),
        ("decoder.layers.0.weight", r"is a tiny autoencoder \(TAESD\); expected an autoencoder"),
        ("some.weight", r"of an unknown kind \(first of its tensors: some.weight\)"),
    ):
        save_file({name: torch.zeros(2, 2)}, source)
        with pytest.raises(WeightsError, match=message):
            with_vae(parts, source)
    with pytest.raises(WeightsError, match=r"none\.safetensors: there is no such autoencoder"):
        with_vae(parts, tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match=r"config.json: there is no such file|has no diffusion_pytorch_model"):
        with_vae(parts, tmp_path)
    tensors = original(parts.vae)
    save_file(
        {f"first_stage_model.{n}": x for n, x in tensors.items()} | {"conditioner.embedders.1.a": torch.zeros(1)},
        source,
    )
    with pytest.raises(WeightsError, match="Stable Diffusion XL checkpoint, whose autoencoder is for other latents"):
        with_vae(parts, source)
    save_file(
        {n: x for n, x in tensors.items() if n != "decoder.conv_out.bias"} | {"decoder.more": torch.zeros(1)}, source
    )
    with pytest.raises(
        WeightsError, match=r"1 missing \(first: decoder.conv_out.bias\); 1 unexpected \(first: decoder.more"
    ):
        with_vae(parts, source)


def test_tiny_decoder_is_refused(parts, tmp_path):
    save_file({"decoder.layers.0.weight": torch.zeros(2)}, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    with pytest.raises(WeightsError, match="is the config of AutoencoderTiny; expected AutoencoderKL"):
        with_vae(parts, tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin"])
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_pickle_is_refused_and_converted(suffix, prefix, parts, tmp_path, source):
    vae = other()
    pickle = tmp_path / f"their vae{suffix}"
    torch.save({"state_dict": {prefix + n: x for n, x in original(vae).items()}, "epoch": 3}, pickle)
    with pytest.raises(
        WeightsError, match=rf"`gradina convert '.*their vae{suffix}' 'their vae.safetensors'` reads it"
    ):
        with_vae(parts, pickle)
    assert all(
        torch.equal(x, vae.state_dict()[n])
        for n, x in with_vae(parts, convert(pickle, source)).vae.state_dict().items()
    )
    folder = convert(source, tmp_path / "folder")
    theirs = diffusers.AutoencoderKL.from_pretrained(folder)
    assert torch.equal(theirs.decoder.conv_in.weight, vae.decoder.conv_in.weight)
    assert theirs.config.scaling_factor == 0.18215
    assert "scaling_factor" not in json.loads((folder / "config.json").read_text())  # the pickle does not give it


def test_folder_of_pickles_is_refused_and_converted(parts, tmp_path, source):
    vae = other(scale=0.7)
    folder = published("folder", parts, vae, source)
    file = folder / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(
        WeightsError, match=r"model\.bin: is a pickle.*`gradina convert .*vae vae-safe` reads it safely"
    ):
        with_vae(parts, folder)
    again = with_vae(parts, convert(folder, tmp_path / "again.safetensors")).vae
    assert again.config == vae.config  # its config goes along in the metadata
    assert torch.equal(again.quant.weight, vae.quant.weight)


def test_model_is_opened_with_another_autoencoder(tmp_path, saved, parts, source):
    saved(tmp_path / "model.safetensors")
    vae = published("original", parts, other(), source)
    opened = open_source(tmp_path / "model.safetensors", vae=vae)
    assert (opened.files, opened.vae_files) == ((tmp_path / "model.safetensors",), (vae,))
    assert opened.hash == open_source(tmp_path / "model.safetensors").hash


@pytest.mark.parametrize("suffix", [".safetensors", ""], ids=["file", "folder"])
@pytest.mark.parametrize("form", FORMS)
def test_model_without_an_autoencoder_is_opened_with_another(form, suffix, tmp_path, saved, parts, source):
    model, vae = saved(tmp_path / f"bare{suffix}"), other()
    if suffix:
        tensors = {n: x for n, x in load_file(model).items() if not n.startswith("first_stage_model.")}
        with safe_open(model, "pt") as file:
            metadata = file.metadata()
        save_file(tensors, model, metadata)
    else:
        shutil.rmtree(model / "vae")
    with pytest.raises(WeightsError, match=r"has no autoencoder; give one by --vae|has no diffusion_pytorch_model"):
        open_source(model)
    opened = open_source(model, vae=published(form, parts, vae, source))
    assert torch.equal(opened.vae.state_dict()["decoder.conv_in.weight"], vae.state_dict()["decoder.conv_in.weight"])
    assert opened.unet.config == parts.unet.config
