"""The verbs info, encode, decode, models and push."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import gradina
from gradina.apps.cli.main import main
from gradina.pipeline import load as loading


def pixels(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def test_info_prints_the_request_of_a_picture(
    room: Path, model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    main(["a fox", "-m", model_folder, "--seed", "9", "-o", "x.png"])
    capsys.readouterr()
    assert main(["info", "x.png"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^prompt +a fox$", said, re.M)
    assert re.search(r"^seed +9$", said, re.M)
    assert main(["info", "x.png", "--json"]) == 0
    assert "a fox" in str(json.loads(capsys.readouterr().out))


def test_push_does_not_round_weights(model_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[gradina.StableDiffusion] = []
    monkeypatch.setattr(loading, "push", lambda model, name: pushed.append(model) or name)
    monkeypatch.setenv("GRADINA_DTYPE", "bf16")  # as pictures are drawn where the processor has it
    assert main(["push", model_folder, "me/mine"]) == 0
    file = load_file(Path(model_folder) / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(pushed[0].unet.state_dict()["conv_in.weight"], file["conv_in.weight"].float())


def test_encode_and_decode(room: Path, photo: Path, model_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "photo.png", "-m", model_folder, "-o", "photo.latents"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^values +\d+\.\d times fewer$", said, re.M)
    assert re.search(rf"^bytes +{(room / 'photo.latents').stat().st_size} \(", said, re.M)
    psnr = float(re.search(r"^PSNR +(-?[\d.]+) dB", said, re.M)[1])  # type: ignore[index]
    assert main(["decode", "photo.latents", "-o", "back.png", "-m", model_folder]) == 0
    a, b = pixels("photo.png").astype(float), pixels("back.png").astype(float)
    assert a.shape == b.shape
    assert 10 * np.log10(255**2 / ((a - b) ** 2).mean()) == pytest.approx(psnr, abs=0.06)


@pytest.mark.parametrize("name", ["back.png", "back.jpg", "back.webp"])
def test_decode_writes_the_format_of_the_suffix(room: Path, photo: Path, model_folder: str, name: str) -> None:
    main(["encode", "photo.png", "-m", model_folder])
    assert main(["decode", "photo.latents", "-o", name, "-m", model_folder]) == 0
    assert pixels(name).shape == (45, 61, 3)


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert re.search(r"^digits +shipped +\d+\.\d MB", capsys.readouterr().out, re.M)


def test_encode_and_decode_with_another_autoencoder(room: Path, photo: Path, vae: Path, model_folder: str) -> None:
    assert main(["encode", "photo.png", "-m", model_folder, "--vae", "vae.safetensors", "-o", "a.latents"]) == 0
    assert main(["decode", "a.latents", "-o", "same.png"]) == 0
    assert main(["decode", "a.latents", "-o", "own.png", "--vae", model_folder]) == 0
    own, other = pixels("own.png").astype(int), pixels("same.png").astype(int)
    assert np.abs(own + other - 255).mean() < np.abs(own - other).mean()
