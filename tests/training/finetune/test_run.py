"""A run of a method: it trains without changing the model, ends with the same bits however often it is stopped, and
its result draws as the trained model does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gradina import Request, generate, load
from gradina.errors import RecipeError
from gradina.pipeline.model import StableDiffusion
from gradina.training.checkpoint import steps_done
from gradina.training.data.latents import LatentDataset
from gradina.training.finetune.config import FinetuneConfig
from gradina.training.finetune.methods import Method, finetuning
from gradina.training.finetune.run import finetune, fingerprint_of, finished, validation_loss

Prepare = Callable[[FinetuneConfig], Method]
Run = Callable[..., Path | None]
REQUEST = Request(prompt="a <boat>", seed=7, steps=3, width=64, height=64, sampler="ddim", schedule="leading")


def states(model: StableDiffusion) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": x.clone()
        for part in ("unet", "text", "vae")
        for name, x in getattr(model, part).state_dict().items()
    }


def levels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image).astype(int)


def test_each_method_trains_and_does_not_change_the_model(
    prepare: Prepare, config: FinetuneConfig, model: StableDiffusion, run_method: Run, tmp_path: Path
) -> None:
    before, config = states(model), replace(config, steps=40)
    method = prepare(config)
    loss = validation_loss(method.trainable, method.loss, config)
    result = run_method(method, config, tmp_path / "run")
    assert result is not None
    assert validation_loss(method.trainable, method.loss, config) < loss
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 4
    after = states(model)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert (tmp_path / "run" / "000040.png").stat().st_size > 1000
    assert not (tmp_path / "run" / "state.safetensors").exists()
    fields = {
        "lora.safetensors": {"loras": ((str(result), 1.0),)},
        "word.safetensors": {"concepts": (str(result),)},
        "edit.safetensors": {"edit": (str(result), 0.0)},
        "model": {},
    }
    drawn = load(result) if result.is_dir() else model
    (picture,) = generate(drawn, replace(REQUEST, **fields[result.name]))  # type: ignore[arg-type]
    (trained,) = generate(method.model(method.trainable), REQUEST)
    (plain,) = generate(model, REQUEST)
    assert np.abs(levels(picture.image) - levels(plain.image)).max() > 3
    assert trained.image.size == picture.image.size


def test_a_stopped_run_resumes_bit_identically(
    prepare: Prepare, config: FinetuneConfig, run_method: Run, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = run_method(prepare(config), config, whole)
    assert run_method(prepare(config), config, parts, stop=2) is None
    assert (parts / "state.safetensors").is_file()
    assert run_method(prepare(config), config, parts, stop=1) is None
    resumed = run_method(prepare(config), config, parts)
    assert result is not None
    assert resumed is not None
    files = [result] if result.is_file() else sorted(result.rglob("*.safetensors"))
    for file in files:
        assert file.read_bytes() == (parts / file.relative_to(whole)).read_bytes(), file
    assert run_method(prepare(config), config, parts) == resumed, "finished: nothing is done again"


CHILD = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:2]
import conftest as t
import torch
from gradina.pipeline.load import load
torch.set_num_threads(1)
model, config = load(sys.argv[2], dtype="fp32"), t.replace(t.CONFIG, steps=30)
method = t.METHODS[sys.argv[5]](model, t.owned(model, Path(sys.argv[3])), config)
list(t.finetune(method, config, Path(sys.argv[4]), "mark", ["a boat"], sample_every=1000, checkpoint_every=0))
"""


@pytest.mark.parametrize("name", ["lora, text", "full", "dreambooth", "inversion"])
def test_a_killed_run_resumes_bit_identically(
    name: str, model: StableDiffusion, pictures: Path, tmp_path: Path
) -> None:
    """kill -9, twice; what lies on disk is whole each time."""
    model.save(tmp_path / "model")

    def command(folder: str) -> list[str]:
        given = (Path(__file__).parent, tmp_path / "model", pictures, tmp_path / folder, name)
        return [sys.executable, "-c", CHILD, *map(str, given)]

    whole = subprocess.Popen(command("whole"))
    for least in (4, 12):
        process = subprocess.Popen(command("parts"))
        while steps_done(tmp_path / "parts" / "state.safetensors", "mark") < least:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        process.wait()
        assert least <= steps_done(tmp_path / "parts" / "state.safetensors", "mark") < 30
    subprocess.run(command("parts"), check=True)
    assert whole.wait() == 0
    files = [p for p in (tmp_path / "whole").rglob("*.safetensors") if p.is_file()]
    assert files
    for file in files:
        assert file.read_bytes() == (tmp_path / "parts" / file.relative_to(tmp_path / "whole")).read_bytes(), file


def test_a_loss_of_nan_writes_what_was_trained_until_then(
    model: StableDiffusion, data: LatentDataset, config: FinetuneConfig, run_method: Run, tmp_path: Path
) -> None:
    method = finetuning(model, data, config)
    calls: list[int] = []

    def failing(network: torch.nn.Module, k: int) -> torch.Tensor:
        calls.append(k)
        return method.loss(network, k) * (float("nan") if k == 4 else 1.0)

    broken = replace(method, loss=failing)
    running = finetune(broken, config, tmp_path / "run", "mark", ["a boat"], sample_every=100)
    with pytest.raises(
        RecipeError, match=r"the loss is nan at step 5; try a lower lr than 0.01; what was trained until"
    ):
        list(running)
    assert calls[-1] == 4
    assert (tmp_path / "run" / "lora.safetensors").is_file()
    result = run_method(finetuning(model, data, config), config, tmp_path / "run")
    assert result is not None, "the state is whole, and the run resumes"


def test_a_folder_of_another_run_is_refused(
    model: StableDiffusion, data: LatentDataset, config: FinetuneConfig, run_method: Run, tmp_path: Path
) -> None:
    run_method(finetuning(model, data, config), config, tmp_path / "run")
    with pytest.raises(RecipeError, match="holds what was made with other pictures or settings; choose another --out"):
        finished(tmp_path / "run", "another")


def test_fingerprints_depend_on_all_settings_and_not_on_new_ones_that_are_off(
    model: StableDiffusion, config: FinetuneConfig
) -> None:
    """The hashes are those of runs before the methods were renamed, and before there were shift and interval."""
    others = {"seed": 4, "shift": 2.0, "interval": (0.1, 5.0), "min_snr": 5.0, "noise_offset": 0.1, "rank": None}
    marks = [fingerprint_of("finetune", model, replace(config, **{k: v})) for k, v in others.items()]  # type: ignore[arg-type]
    marks += [fingerprint_of(name, model, config, "a boat") for name in ("finetune", "dreambooth")]
    assert len(set(marks)) == len(marks)
    assert fingerprint_of("finetune", model, config) == "8bfcb544d28a7d57"
    assert fingerprint_of("textual_inversion", model, config) == "6b7731c9c8225831"
    assert fingerprint_of("imagic_embedding", model, config) == "e267a9796f30e115"
    assert fingerprint_of("imagic_finetune", model, config) == "5eda4ace51dd19d6"


def test_the_validation_loss_is_logged(
    model: StableDiffusion, data: LatentDataset, config: FinetuneConfig, tmp_path: Path
) -> None:
    method = finetuning(model, data, config)
    list(finetune(method, config, tmp_path / "run", "mark", ["a boat"], 3, validation=data))
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6]
    assert all(row["validation"] > 0 for row in rows)
