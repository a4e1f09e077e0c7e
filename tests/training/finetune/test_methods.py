"""Each method learns what it should and nothing else, ends with the same bits however often it is stopped, and what it
keeps draws elsewhere as it does here."""

from __future__ import annotations

import copy
import json
import shutil
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
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from gradina import Request, generate, load
from gradina.errors import RecipeError, WeightsError
from gradina.pipeline.model import StableDiffusion
from gradina.training.checkpoint import steps_done
from gradina.training.data.buckets import Crop
from gradina.training.data.image_folder import read_image_folder
from gradina.training.data.latents import LatentDataset, encode_pictures
from gradina.training.finetune.memory_estimate import kept_for_the_way_back
from gradina.training.finetune.methods import Learning, class_pictures, dreambooth, finetuning, first_vectors, inversion
from gradina.training.finetune.run import checked, finished, mark_of, own
from gradina.training.finetune.trainable import Owning
from gradina.weights.formats.textual_inversion import read_embedding

Tiny = Callable[..., StableDiffusion]
HOW = Owning(steps=6, batch=2, lr=1e-2, warmup=0, rank=2, seed=3)
ASKED = Request(prompt="a <boat>", seed=7, steps=3, width=64, height=64, sampler="ddim", schedule="leading")


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "boats"
    folder.mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 64), colour).save(folder / f"a {colour} boat.png")
    return folder


def data(model: StableDiffusion, pictures: Path) -> LatentDataset:
    return encode_pictures(model, read_image_folder(pictures), Crop(), 64 * 64)


METHODS: dict[str, Callable[[StableDiffusion, LatentDataset, Owning], Learning]] = {
    "lora": finetuning,
    "lora, text": lambda model, owned, how: finetuning(model, owned, replace(how, text_rate=0.5)),
    "full": lambda model, owned, how: finetuning(model, owned, replace(how, rank=None, lr=1e-3)),
    "full, text": lambda model, owned, how: finetuning(model, owned, replace(how, rank=None, lr=1e-3, text_rate=0.5)),
    "dreambooth": lambda model, owned, how: dreambooth(model, owned, owned, how),
    "inversion": lambda model, owned, how: inversion(model, owned, "<boat>", "boat", replace(how, vectors=2)),
}


def states(model: StableDiffusion) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": x.clone()
        for part in ("unet", "text", "vae")
        for name, x in getattr(model, part).state_dict().items()
    }


def levels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image).astype(int)


def ran(learning: Learning, how: Owning, folder: Path, stop: int | None = None) -> Path | None:
    """A run to its end, or closed after some steps."""
    running = own(learning, how, folder, "mark", ["a boat"], sample_every=100)
    for _ in range(stop or 10**6):
        try:
            next(running)
        except StopIteration as end:
            return Path(end.value)
    running.close()
    return None


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_and_the_model_itself_stays(name: str, tiny_model: Tiny, pictures: Path, tmp_path: Path) -> None:
    model = tiny_model("sd1")
    before, how = states(model), replace(HOW, steps=40)
    learning = METHODS[name](model, data(model, pictures), how)
    loss = checked(learning.learner, learning.loss, how)
    kept = ran(learning, how, tmp_path / "run")
    assert kept is not None
    assert checked(learning.learner, learning.loss, how) < loss
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 4
    after = states(model)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert (tmp_path / "run" / "000040.png").stat().st_size > 1000
    assert not (tmp_path / "run" / "state.safetensors").exists()
    if kept.is_dir():
        drawn, asked = load(kept), ASKED
    else:
        fields = {"concepts": (str(kept),)} if name == "inversion" else {"loras": ((str(kept), 1.0),)}
        drawn, asked = model, replace(ASKED, **fields)
    (picture,) = generate(drawn, asked)
    (live,) = generate(learning.model(learning.learner), ASKED)
    (plain,) = generate(model, ASKED)
    assert np.abs(levels(picture.image) - levels(plain.image)).max() > 3
    assert live.image.size == picture.image.size


@pytest.mark.parametrize("name", METHODS)
def test_stopped_and_gone_on_with_it_ends_with_the_same_bits(
    name: str, tiny_model: Tiny, pictures: Path, tmp_path: Path
) -> None:
    def fresh() -> Learning:
        model = tiny_model("sd1")
        return METHODS[name](model, data(model, pictures), HOW)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    kept = ran(fresh(), HOW, whole)
    assert ran(fresh(), HOW, parts, stop=2) is None
    assert (parts / "state.safetensors").is_file()
    assert ran(fresh(), HOW, parts, stop=1) is None
    again = ran(fresh(), HOW, parts)
    assert kept is not None
    assert again is not None
    files = [kept] if kept.is_file() else sorted(kept.rglob("*.safetensors"))
    for file in files:
        assert file.read_bytes() == (parts / file.relative_to(whole)).read_bytes(), file
    assert ran(fresh(), HOW, parts) == again, "finished: nothing is done again"


def test_recomputed_is_the_same_with_less_kept(tiny_model: Tiny, pictures: Path, tmp_path: Path) -> None:
    model = tiny_model("sd1")
    sizes, losses = [], []
    kept: list[int] = []
    for checkpointing in (False, True):
        kept.clear()
        learning = finetuning(model, data(model, pictures), replace(HOW, checkpointing=checkpointing))
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.nbytes), x)[1], lambda x: x):
            loss = learning.loss(learning.learner, 0).mean()
        loss.backward()
        sizes.append(sum(kept))
        grads = [p.grad for p in learning.learner.parameters()]
        assert all(g is not None for g in grads)
        losses.append((loss.item(), torch.cat([g.flatten() for g in grads if g is not None])))
    assert sizes[1] < sizes[0] / 2
    assert losses[0][0] == losses[1][0]
    assert torch.allclose(losses[0][1], losses[1][1], atol=1e-6)


def test_a_word_begins_as_another_and_only_it_learns(tiny_model: Tiny, pictures: Path, tmp_path: Path) -> None:
    model = tiny_model("sd1")
    how = replace(HOW, vectors=3, steps=2)
    ids = model.tokenizer.ids("boat")
    learning = inversion(model, data(model, pictures), "<boat>", "boat", how)
    begun = learning.learner.values("word")["vectors"]
    assert torch.equal(begun[0], model.text.token.weight[ids[0]])
    assert [tuple(p.shape) for p in learning.learner.parameters()] == [(3, 32)]
    kept = ran(learning, how, tmp_path / "run")
    assert kept is not None
    concept = read_embedding(kept)
    assert concept.token == "<boat>"
    assert not torch.equal(concept.vectors, begun)
    with pytest.raises(WeightsError, match="'seven' is a token of this model already"):
        inversion(model, data(model, pictures), "seven", "boat", how)
    with pytest.raises(RecipeError, match="init word: ' ' holds no word"):
        inversion(model, data(model, pictures), "<boat>", " ", how)


@pytest.mark.parametrize(
    ("start", "count", "told"), [("xylophone", 1, True), ("xylophone", 99, False), ("boat", 9, False)]
)
def test_an_initial_word_of_several_tokens_is_told(
    tiny_model: Tiny, caplog: pytest.LogCaptureFixture, start: str, count: int, told: bool
) -> None:
    model = tiny_model("sd1")
    ids = model.tokenizer.ids(start)
    begun = first_vectors(model, start, count)
    assert torch.equal(begun[: len(ids)], model.text.token.weight[ids[:count]])
    if told:
        (note,) = caplog.messages
        assert note.startswith(f"init word: 'xylophone' has {len(ids)} tokens (")
        assert note.endswith(f"--vectors {len(ids)} takes all")
    else:
        assert not caplog.messages
    with pytest.raises(RecipeError, match="init word: the model's tokenizer does not know all of"):
        first_vectors(model, "<|endoftext|>", 1)


def test_a_word_with_capitals_draws_the_same_in_diffusers(
    tiny_model: Tiny, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of three vectors, as what was learnt draws here: it is kept in small letters, and found by those there."""
    tiny_model("sd1").save(tmp_path / "model")
    model = load(tmp_path / "model")
    how = replace(HOW, vectors=3, steps=3, lr=0.1)
    learning = inversion(model, data(model, pictures), "<Toy>", "boat", how)
    assert "word: <Toy> is kept as <toy>, as prompts are read in small letters" in caplog.messages
    kept = ran(learning, how, tmp_path / "run")
    assert kept is not None
    assert list(load_file(kept)) == ["<toy>"]
    (mine,) = generate(model, replace(ASKED, prompt="a <Toy> boat", concepts=(str(kept),)))
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    pipe.load_textual_inversion(kept)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    theirs = pipe("a <toy> boat", num_inference_steps=3, guidance_scale=3.0, latents=noise).images[0]
    assert np.abs(levels(mine.image) - levels(theirs)).max() <= 1
    (plain,) = generate(model, ASKED)
    assert np.abs(levels(mine.image) - levels(plain.image)).max() > 3


LONG = "a boat " * 60


@pytest.mark.parametrize("text_rate", [0.0, 0.5])
def test_long_captions_are_learnt_as_prompts_are_read(
    tiny_model: Tiny, pictures: Path, caplog: pytest.LogCaptureFixture, text_rate: float
) -> None:
    """Whole, in chunks; shorter ones beside them are filled up with empty ones."""
    model = tiny_model("sd1")
    owned = data(model, pictures)
    owned = replace(owned, captions=(("a red boat", LONG),))
    learning = finetuning(model, owned, replace(HOW, text_rate=text_rate))
    (note,) = caplog.messages
    chunks = model.tokenizer.chunk_count(LONG)
    assert chunks > 1
    assert note.startswith("captions: 1 of 2 are longer than the 75 tokens that the text tower reads at once")
    assert f"in up to {chunks} chunks" in note
    texts = ["a red boat", LONG, "", "a red boat"]
    with torch.no_grad():
        assert torch.allclose(learning.live.cond(texts), model.encode_text(texts).states, atol=1e-6)
        assert torch.allclose(
            learning.live.cond(["a red boat", ""]), model.encode_text(["a red boat", ""]).states, atol=1e-6
        )
    learning.loss(learning.learner, 0).mean().backward()
    small = kept_for_the_way_back(learning.live, (4, 8, 8), HOW)
    learning.live.chunks = 1
    assert kept_for_the_way_back(learning.live, (4, 8, 8), HOW) < small


def test_long_prompts_of_dreambooth_and_of_words_are_told(
    tiny_model: Tiny, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("sd1")
    owned = data(model, pictures)
    dreambooth(model, owned, replace(owned, captions=((LONG, LONG),)), HOW)
    assert caplog.messages.pop().startswith("captions: 1 of 3 are longer than the 75 tokens")
    inversion(model, owned, "<boat>", "boat", replace(HOW, vectors=74))
    assert "captions: 6 of 8 are longer" in caplog.messages[-1]


def test_the_prior_keeps_the_class(tiny_model: Tiny, pictures: Path, tmp_path: Path) -> None:
    """Loss of the class pictures is part of the loss, by its weight."""
    model = tiny_model("sd1")
    owned = data(model, pictures)
    without, light, heavy = (
        dreambooth(model, owned, others, replace(HOW, prior=weight)).loss(torch.nn.Module(), 0).mean().item()
        for others, weight in ((None, 1.0), (owned, 1.0), (owned, 3.0))
    )
    assert heavy - without == pytest.approx(3 * (light - without), rel=1e-4)
    assert light > without


def test_class_pictures_are_drawn_once(tiny_model: Tiny, tmp_path: Path) -> None:
    model = tiny_model("sd1")
    two = list(class_pictures(model, "a boat", 2, tmp_path / "class"))
    before = [path.read_bytes() for path in two]
    three = list(class_pictures(model, "a boat", 3, tmp_path / "class"))
    assert [path.read_bytes() for path in three[:2]] == before
    assert len(three) == 3
    assert len(list(class_pictures(model, "a boat", 2, tmp_path / "class"))) == 2


def test_class_pictures_are_those_of_the_prompt_the_model_and_its_settings(
    tiny_model: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Others stay in the folder, and are not used; photographs, which carry no request, are."""
    tiny_model("sd1").save(tmp_path / "model")
    model, folder = load(tmp_path / "model", dtype="fp32", plain=True), tmp_path / "class"
    first = class_pictures(model, "a boat", 2, folder)
    kept = [path.read_bytes() for path in first]
    for note, other, prompt in (
        ("the prompt 'a boat'", model, "a cat"),
        ("the width 64", replace(model, defaults=replace(model.defaults, width=128)), "a boat"),
        ("the model model [", load(second(model, tmp_path / "second"), dtype="fp32"), "a boat"),
    ):
        caplog.clear()
        there = shutil.copytree(folder, tmp_path / f"class of {note}")
        drawn = class_pictures(other, prompt, 2, there)
        assert f"not of the class {prompt!r} stay there and are not used (2: 0000.png has {note}" in caplog.text
        assert [path.name for path in drawn] == ["0000-2.png", "0001-2.png"]
        assert [(there / path.name).read_bytes() for path in first] == kept
        assert class_pictures(other, prompt, 2, there) == drawn
    caplog.clear()
    Image.new("RGB", (64, 64), "red").save(folder / "photograph.jpg")
    assert class_pictures(model, "a boat", 3, folder) == [folder / "photograph.jpg", *first]
    assert "do not say what they show are taken for the class 'a boat' (1: photograph.jpg)" in caplog.text


def second(model: StableDiffusion, folder: Path) -> Path:
    """Another model than that."""
    unet = copy.deepcopy(model.unet)
    unet.conv_in.bias.data += 1
    replace(model, unet=unet).save(folder)
    return folder


def test_a_loss_that_is_no_number_keeps_what_was_learnt(tiny_model: Tiny, pictures: Path, tmp_path: Path) -> None:
    model = tiny_model("sd1")
    learning = finetuning(model, data(model, pictures), HOW)
    calls: list[int] = []

    def failing(network: torch.nn.Module, k: int) -> torch.Tensor:
        calls.append(k)
        return learning.loss(network, k) * (float("nan") if k == 4 else 1.0)

    broken = replace(learning, loss=failing)
    running = own(broken, HOW, tmp_path / "run", "mark", ["a boat"], sample_every=100)
    with pytest.raises(
        RecipeError, match=r"the loss is nan at step 5; try a lower lr than 0.01; what was learnt until"
    ):
        list(running)
    assert calls[-1] == 4
    assert (tmp_path / "run" / "lora.safetensors").is_file()
    good = finetuning(tiny_model("sd1"), data(model, pictures), HOW)
    kept = ran(good, HOW, tmp_path / "run")
    assert kept is not None, "the state is whole, and goes on"


def test_a_folder_of_something_else_is_left_alone(tiny_model: Tiny, pictures: Path, tmp_path: Path) -> None:
    model = tiny_model("sd1")
    learning = finetuning(model, data(model, pictures), HOW)
    ran(learning, HOW, tmp_path / "run")
    with pytest.raises(RecipeError, match="holds what was made with other pictures or settings; choose another --out"):
        finished(tmp_path / "run", "another")
    one, other = (mark_of("finetune", model, replace(HOW, seed=seed)) for seed in (1, 2))
    assert one != other


def test_the_loss_on_unseen_pictures_is_logged(tiny_model: Tiny, pictures: Path, tmp_path: Path) -> None:
    model = tiny_model("sd1")
    owned = data(model, pictures)
    running = own(finetuning(model, owned, HOW), HOW, tmp_path / "run", "mark", ["a boat"], 3, unseen=owned)
    list(running)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6]
    assert all(row["validation"] > 0 for row in rows)


def test_texts_are_read_once_and_kept(tiny_model: Tiny, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("sd1")
    owned = data(model, pictures)
    first = finetuning(model, owned, HOW)
    assert set(first.live.known) == {"", "a red boat", "a blue boat"}
    again = finetuning(model, owned, HOW)
    monkeypatch.setattr(again.live, "_read", None)
    assert torch.equal(again.loss(again.learner, 0), first.loss(first.learner, 0))
    with torch.no_grad():  # as what is kept was read
        read = model.text(model.tokenizer(["a red boat"]))[0]
    assert torch.equal(again.live.known["a red boat"], read)


CHILD = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:2]
import test_methods as t
import torch
from gradina.pipeline.load import load
torch.set_num_threads(1)
model, how = load(sys.argv[2], dtype="fp32"), t.replace(t.HOW, steps=30)
learning = t.METHODS[sys.argv[5]](model, t.data(model, Path(sys.argv[3])), how)
list(t.own(learning, how, Path(sys.argv[4]), "mark", ["a boat"], sample_every=1000, checkpoint_every=0))
"""


@pytest.mark.parametrize("name", ["lora, text", "full", "dreambooth", "inversion"])
def test_killed_at_any_moment_it_goes_on_to_the_same_bits(
    name: str, tiny_model: Tiny, pictures: Path, tmp_path: Path
) -> None:
    """kill -9, twice; what lies on disk is whole each time."""
    tiny_model("sd1").save(tmp_path / "model")

    def command(folder: str) -> list[str]:
        here = Path(__file__).parent
        given = (here, tmp_path / "model", pictures, tmp_path / folder, name)
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
