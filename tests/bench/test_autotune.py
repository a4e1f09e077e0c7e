"""Tuning: what is tried in which time, which settings nothing beats, and the presets that come of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gradina import GradinaError, Request
from gradina.apps.cli.main import main
from gradina.bench.autotune import REFERENCE, SAMPLERS, SURVEY_STEPS, Trial, front, preset, presets, save_trials, tune
from gradina.errors import RequestError
from gradina.images.metadata import read_picture
from gradina.pipeline.model import StableDiffusion

Tiny = Callable[..., StableDiffusion]
ASKED = Request(prompt=("a red boat", "a seven"), seed=0)


class Calls:
    """A clock that goes by one second whenever the U-Net is asked."""

    def __init__(self, model: StableDiffusion) -> None:
        self.now = 0.0
        self.hook = model.unet.conv_in.register_forward_pre_hook(lambda *_: self.tick())

    def tick(self) -> None:
        self.now += 1

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and a cache of its own."""
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trial(seconds: float, psnr: float, **settings: object) -> Trial:
    return Trial(settings, seconds, psnr)


MADE = [
    trial(2, 25, steps=20), trial(1, 18, steps=8), trial(1, 21, steps=9), trial(4, 24, steps=30),
    trial(5, 31, steps=40, guidance_interval=[0.3, 6.0]), trial(2.5, 25, steps=21),
]  # fmt: skip


def test_the_pareto_front() -> None:
    assert [t.settings["steps"] for t in front(MADE)] == [9, 20, 40]
    assert front([]) == []


def test_presets_are_the_fastest_of_their_psnr_or_else_the_closest() -> None:
    assert {name: t.settings["steps"] for name, t in presets(MADE).items()} == {"fast": 9, "balanced": 40, "best": 40}
    assert presets([]) == {}


def test_trials_fit_into_the_time(tiny_model: Tiny) -> None:
    """Each trial's seconds are the calls of its sampler, and more steps come nearer to very many."""
    model = tiny_model()
    clock = Calls(model)
    list(tune(model, ASKED, 900, clock))
    assert 850 < clock.now <= 900 + 40  # pndm takes a call more than it has steps
    trials = list(tune(model, replace(ASKED, prompt="a boat"), 4000, clock))
    clock.hook.remove()
    assert {t.settings["sampler"] for t in trials[: len(SAMPLERS)]} == set(SAMPLERS)
    for t in trials:
        more = {"heun": 2 * t.settings["steps"] - 1, "pndm": t.settings["steps"] + 1}
        assert t.seconds == more.get(t.settings["sampler"], t.settings["steps"])
    best = {n: max(t.psnr for t in trials if t.settings["steps"] == n) for n in (4, SURVEY_STEPS, 40)}
    assert best[40] > best[SURVEY_STEPS] > best[4]
    assert any("reuse" in t.settings for t in trials)


def test_an_engine_that_runs_the_unet_as_a_whole_tries_no_reuse(tiny_model: Tiny) -> None:
    model = tiny_model()
    clock = Calls(model)
    compiled = replace(model, engine="compile")
    compiled.__dict__["_unet"], compiled.__dict__["_decode"] = model._unet, model._decode  # compiling takes a minute
    trials = list(tune(compiled, replace(ASKED, prompt="a boat"), 3000, clock))
    clock.hook.remove()
    assert any("guidance_interval" in t.settings for t in trials)
    assert not any("reuse" in t.settings for t in trials)


def test_too_short_a_time_is_refused_with_the_time_it_takes(tiny_model: Tiny) -> None:
    model = tiny_model()
    clock = Calls(model)
    with pytest.raises(GradinaError, match=r"a step takes 1 s here.* takes 1.7 minutes; give at least 4 minutes"):
        list(tune(model, ASKED, 150, clock))
    clock.hook.remove()
    assert clock.now < REFERENCE["steps"]


def test_presets_are_cached_by_model_and_dtype(room: Path, tiny_model: Tiny) -> None:
    model = tiny_model()
    with pytest.raises(RequestError, match="preset: fast: nothing has been measured for this model here; run `gradina"):
        preset(model, "fast")
    path = save_trials(model, MADE)
    assert path.is_relative_to(room / "cache")
    assert preset(model, "fast") == {"steps": 9}
    assert preset(model, "2.2s") == {"steps": 20}
    assert Request(**preset(model, "best")).guidance_interval == (0.3, 6.0)
    with pytest.raises(RequestError, match="preset: there is no 'fats'; did you mean 'fast'"):
        preset(model, "fats")
    with pytest.raises(RequestError, match=r"preset: 0.5s: the quickest that was found takes 1 s"):
        preset(model, "0.5s")
    with pytest.raises(RequestError, match="nothing has been measured"):
        preset(replace(model, name="another"), "fast")
    old = [{"settings": {"steps": 9}, "seconds": 1, "likeness": 25}]  # as earlier versions wrote it
    path.write_text(json.dumps({"trials": old}))
    assert preset(model, "fast") == {"steps": 9}
    path.write_text("{")
    with pytest.raises(RequestError, match="nothing has been measured"):
        preset(model, "fast")


def test_from_the_command_line(room: Path, tiny_model: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model().save("tiny")
    assert main(["tune", "a boat", "-m", "tiny", "--minutes", "0.4", "--plot", "front.png"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("seconds     dB  settings\n")
    assert "<- fast" in said or "fast balanced" in said
    assert (room / "front.png").stat().st_size > 5000
    assert main(["a boat", "-m", "tiny", "--preset", "best", "--seed", "1", "-o", "a.png"]) == 0
    assert main(["a boat", "-m", "tiny", "--preset", "best", "--seed", "1", "--steps", "2", "-o", "b.png"]) == 0
    found, told = read_picture("a.png").request, read_picture("b.png").request
    named = next(line for line in said.splitlines() if "best" in line)
    assert f"sampler {found.sampler}, schedule {found.schedule}, steps {found.steps}" in named
    assert (told.steps, told.sampler) == (2, found.sampler)
    assert main(["tune", "-m", "tiny", "--minutes", "0"]) == 2
    assert "give at least" in capsys.readouterr().err
