"""The verbs that fine-tune, as a person types them: their results draw, and mistakes get one line."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from gradina.apps.cli import finetune, train
from gradina.apps.cli.main import main
from gradina.pipeline.model import StableDiffusion
from gradina.training.data.captioned_image import CaptionedImage
from gradina.training.finetune import memory_estimate
from gradina.training.finetune.config import FinetuneConfig

Said = pytest.CaptureFixture[str]


@pytest.fixture
def room(tiny_model: Callable[..., StableDiffusion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, and some pictures."""
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    tiny_model("sd1").save("tiny")
    Path("boats").mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 64), colour).save(f"boats/a {colour} boat.png")
    return tmp_path


def levels(name: str) -> np.ndarray[Any, Any]:
    with Image.open(name) as image:
        return np.asarray(image).astype(int)


def grey(one: str, other: str) -> int:
    a, b = (levels(name) for name in (one, other))
    return int(np.abs(a - b).max())


def drawn(name: str, *options: str, prompt: str = "a boat", model: str = "tiny") -> str:
    assert main([prompt, "-m", model, "--seed", "1", "--steps", "3", "-o", name, *options]) == 0
    return name


COMMON = ["-m", "tiny", "--steps", "3", "--lr", "0.05", "--sample-every", "2", "-q"]


def test_finetune(room: Path, capsys: Said) -> None:
    asked = ["finetune", "boats", *COMMON, "--out", "run", "--validation", "boats", "--flip", "--min-snr", "5"]
    assert main(asked) == 0
    said = capsys.readouterr()
    assert said.out == "run/lora.safetensors\n"
    learnt = sum(x.numel() for name, x in load_file("run/lora.safetensors").items() if "alpha" not in name)
    assert f"trains {learnt:,} parameters" in said.err
    assert "3 steps of 4 pictures" in said.err
    assert sorted(p.name for p in Path("run").iterdir()) == [
        ".lock", "000002.png", "000003.png", "done.json", "log.jsonl", "lora.safetensors", "samples", "samples.png",
    ]  # fmt: skip
    assert grey(drawn("a.png"), drawn("b.png", "--lora", "run/lora.safetensors")) > 3
    assert main(asked) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "run/lora.safetensors"
    assert main([*asked, "--seed", "4"]) == 2
    assert "run: holds what was made with other pictures or settings" in capsys.readouterr().err


def test_the_source_of_captions_is_printed_before_a_model_is_loaded(room: Path, capsys: Said) -> None:
    asked = ["finetune", "boats", "-m", "none", "--validation", "boats"]
    assert main(asked) == 2
    told = 'captions: from names of files (2 of 2); a blue boat.png: "a blue boat"'
    assert capsys.readouterr().err.splitlines()[:2] == [
        f"gradina: note: {told}", f"gradina: note: validation, {told}",
    ]  # fmt: skip
    Path("boats/3_ship").mkdir()
    for colour in ("red", "blue"):
        Path(f"boats/a {colour} boat.png").rename(f"boats/3_ship/a {colour} boat.png")
    assert main(asked) == 2
    repeats, told = capsys.readouterr().err.splitlines()[:2]
    assert repeats.endswith("as in kohya's scripts (3_ship: 2 pictures x 3)")
    assert told == 'gradina: note: captions: from names of folders (2 of 2); a blue boat.png: "ship"'


def test_pictures_captions_and_repeats_decide_the_fingerprint(tmp_path: Path) -> None:
    """Without repeats it is as before there were any, so that older runs resume."""
    (tmp_path / "a.png").write_bytes(b"")
    one = CaptionedImage(tmp_path / "a.png", "a boat")
    empty = hashlib.sha256(b"").hexdigest()
    assert finetune._hashed([one, replace(one, repeats=3)]) == [(empty, "a boat"), (empty, "a boat", 3)]


def test_finetune_all_weights(room: Path, capsys: Said) -> None:
    assert main(["finetune", "boats", *COMMON, "--full", "--text-rate", "0.5", "--out", "run", "--random-crop"]) == 0
    assert capsys.readouterr().out == "run/model\n"
    assert grey(drawn("a.png"), drawn("b.png", model="run/model")) > 3


def test_invert(room: Path, capsys: Said) -> None:
    assert main(["invert", "boats", *COMMON, "--word", "<boat>", "--init-word", "boat", "--vectors", "2"]) == 0
    assert capsys.readouterr().out == "runs/invert/word.safetensors\n"
    drawn("a.png", "--concept", "runs/invert/word.safetensors", prompt="a <boat>")
    assert grey("a.png", drawn("b.png", prompt="a <boat>")) > 3
    assert main(["invert", "boats", *COMMON, "--word", "seven", "--out", "other"]) == 2
    assert "'seven' is a token of this model already; choose another word, such as <seven>" in capsys.readouterr().err


def test_dreambooth(room: Path, capsys: Said) -> None:
    asked = ["dreambooth", "boats", *COMMON, "--instance", "a sks boat", "--class", "a boat", "--class-pictures", "2"]
    assert main(asked) == 0
    assert capsys.readouterr().out == "runs/dreambooth/lora.safetensors\n"
    assert len(list(Path("runs/dreambooth/class").glob("*.png"))) == 2
    drawn("a.png", "--lora", "runs/dreambooth/lora.safetensors:0.5", prompt="a sks boat")


@pytest.mark.parametrize("full", [False, True])
def test_imagic(room: Path, capsys: Said, full: bool) -> None:
    asked = ["imagic", "boats/a red boat.png", "a blue boat", *COMMON, "--states-steps", "2", "--out", "run"]
    assert main([*asked, *(["--full"] if full else [])]) == 0
    assert capsys.readouterr().out == "run/2-picture/edit.safetensors\nrun/strip.png\n"
    assert levels("run/strip.png").shape[1] > 6 * 64
    model = "run/2-picture/model" if full else "tiny"
    edit = "run/2-picture/edit.safetensors"
    one, two = (drawn(f"{eta}.png", "--edit", f"{edit}:{eta}", prompt="a blue boat", model=model) for eta in (0, 1))
    assert grey(one, two) > 0
    assert main(["again", one, "-o", "again.png"]) == 0
    assert grey(one, "again.png") == 0


@pytest.mark.parametrize("verb", ["finetune", "dreambooth", "invert", "imagic"])
@pytest.mark.parametrize("option", ["--shift=3", "--interval=0.5:5", "--noise-offset=0.2", "--min-snr=1"])
def test_every_verb_takes_each_option_of_the_noise_law(room: Path, verb: str, option: str) -> None:
    asked = [verb, *(["boats/a red boat.png", "a boat"] if verb == "imagic" else ["boats"]), *COMMON, "--dry-run"]
    configs: list[FinetuneConfig] = []
    record = finetune.FinetuneCommand.__init__

    def recording(command: finetune.FinetuneCommand, method: str, config: FinetuneConfig, *others: Any) -> None:
        configs.append(config)
        record(command, method, config, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.FinetuneCommand, "__init__", recording)
        assert main([*asked, option]) == 0
    name, _, text = option.removeprefix("--").partition("=")
    expected = (0.5, 5.0) if name == "interval" else float(text)
    assert [getattr(config, name.replace("-", "_")) for config in configs] == [expected] * len(configs)
    assert configs


def test_a_dry_run_leaves_nothing(room: Path, capsys: Said) -> None:
    for verb in (["finetune", "boats"], ["invert", "boats"], ["dreambooth", "boats", "--class", "a boat"]):
        assert main([*verb, *COMMON, "--dry-run", "--out", "run"]) == 0
    assert main(["imagic", "boats/a red boat.png", "a boat", *COMMON, "--dry-run", "--out", "run"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("about 0.") == 4
    assert not Path("run").exists()


def test_what_does_not_fit_into_memory_is_refused_with_settings_that_need_less(
    room: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_estimate, "free_memory", lambda: 10_000_000)
    assert main(["finetune", "boats", *COMMON, "--full", "--batch", "4", "--out", "run"]) == 2
    said = capsys.readouterr().err
    assert "GB of memory, and 0.0 GB are free; what takes less: a LoRA instead of all weights (--rank 8)" in said
    assert "--batch 1 with --accumulate, --checkpointing" in said
    assert not Path("run").exists()


WRONG = [
    (["finetune", "nowhere"], "nowhere: there is no such folder of pictures"),
    (["finetune", "empty"], "empty: holds no pictures"),
    (["finetune", "numbers"], "captions are missing for 1 of 1 pictures (1.png)"),
    (["finetune", "small"], "1 of 1 pictures are too small, expected about 64x64 pixels (small/a boat.png: 8x8)"),
    (["finetune", "boats", "--dtype", "fp16"], "fp16 is too narrow for training"),
    (["finetune", "boats", "--lr", "0"], "lr: got 0.0, expected a number above 0"),
    (["finetune", "boats", "--lr", "inf"], "lr: got inf, expected a number above 0"),
    (["finetune", "boats", "--min-snr", "-1"], "min_snr: got -1.0, expected a number above 0"),
    (["finetune", "boats", "--noise-offset", "nan"], "noise_offset: got nan, expected 0, or a number above it"),
    (["finetune", "boats", "--caption-dropout", "2"], "caption_dropout: got 2.0, expected 0 to 1"),
    (["finetune", "boats", "--shift", "0"], "shift: got 0.0, expected more than 0"),
    (["invert", "boats", "--interval", "3"], "interval: got '3', expected LOW:HIGH"),
    (
        ["dreambooth", "boats", "--interval", "3:2"],
        "interval: got (3.0, 2.0), expected the lowest and the highest sigma",
    ),
    (
        ["imagic", "boats/a red boat.png", "a boat", "--interval", "20:30"],
        "interval: got 20 to 30, which holds no noise",
    ),
    (["dreambooth", "boats", "--instance", ""], "--instance: got an empty text, expected PROMPT"),
    (["imagic", "nothing.png", "a boat"], "nothing.png: there is no such picture"),
    (["invert", "boats", "--word", "two words"], "'two words': expected a word without spaces"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG)
def test_mistakes_get_one_line(room: Path, capsys: Said, arguments: list[str], words: str) -> None:
    for name in ("empty", "numbers", "small"):
        Path(name).mkdir()
    Image.new("RGB", (64, 64)).save("numbers/1.png")
    Image.new("RGB", (8, 8)).save("small/a boat.png")
    assert main([*arguments, "-m", "tiny", "-q"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert words in said[-1]
    assert said[-1].startswith("gradina: ")


def test_an_interrupted_run_keeps_its_state_and_resumes(
    room: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["finetune", "boats", *COMMON, "--out", "run"]
    real = train.progress_lines

    def stopping(running: object) -> object:
        for line in real(running):  # type: ignore[arg-type]
            os.kill(os.getpid(), signal.SIGINT)
            yield line

    monkeypatch.setattr(train, "progress_lines", stopping)
    assert main(asked) == 130
    assert "run the same command again to resume (run)" in capsys.readouterr().err
    assert Path("run/state.safetensors").is_file()
    monkeypatch.setattr(train, "progress_lines", real)
    assert main(asked) == 0
    assert Path("run/lora.safetensors").is_file()


def test_control_characters_are_escaped(room: Path, capsys: Said) -> None:
    Path("boats/a red boat.txt").write_text("a \x1b[31m red\x9b boat\n")
    assert main(["finetune", "boats", *COMMON, "--dry-run"]) == 2
    assert main(["finetune", "boats/\x1bc", *COMMON, "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "gradina: boats/\\x1bc: there is no such folder" in said
    assert not {"\x1b", "\x9b"} & set(said)


def test_validation_pictures_that_are_trained_on_are_reported(room: Path, capsys: Said) -> None:
    both = len(list(Path("boats").glob("*.png")))
    assert main(["finetune", "boats", *COMMON, "--dry-run", "--validation", "../" + room.name + "/boats"]) == 0
    assert f"note: validation: {both} of {both} pictures are also trained on" in capsys.readouterr().err
