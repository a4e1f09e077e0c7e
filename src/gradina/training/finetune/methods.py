"""Ways to make a model one's own, over the one loop: what learns, from which pictures and words, by which loss."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gradina.adapters.inject import shallow_clone
from gradina.adapters.lora import LoRA
from gradina.adapters.textual_inversion import Concept, taught
from gradina.errors import PictureError, RecipeError
from gradina.files import unused_path
from gradina.images.folder import pictures_in
from gradina.images.metadata import Record, read_picture
from gradina.kernels.prepack import unpacked
from gradina.models.tokenizer import as_placeholder
from gradina.pipeline.generate import generate
from gradina.pipeline.model import StableDiffusion
from gradina.request import Request
from gradina.training.data.captioned_image import shortened
from gradina.training.data.dataset import generator
from gradina.training.data.latents import LatentDataset
from gradina.training.finetune.trainable import Learner, Live, Owning, WithWord, ready, told
from gradina.training.loop import Loss
from gradina.weights.formats.imagic import write_imagic
from gradina.weights.formats.textual_inversion import write_embedding

log = logging.getLogger(__name__)

LISTED = 12  # tokens in a message
TEMPLATES = ("{}", "a {}", "a picture of {}", "a picture of a {}", "one {}", "the {}", "a drawing of {}", "my {}")


@dataclass(frozen=True)
class Published:
    """How a method's authors run it with Stable Diffusion."""

    steps: int
    lora_lr: float  # learning rate of a LoRA, or of what the method learns in its place
    full_lr: float  # of all weights
    accumulate: int = 1
    ema: float = 0.0


METHODS = {  # sources: diffusers' example scripts and their guides; for Imagic, the paper's settings, section 4
    #                       steps  LoRA  all   accumulate     ema
    "finetune":   Published(1000, 1e-4, 1e-5, accumulate=4, ema=0.999),
    "dreambooth": Published(800,  1e-4, 5e-6),
    "inversion":  Published(3000, 2e-3, 2e-3, accumulate=4),
    "nearer":     Published(1000, 2e-3, 2e-3),
    "onto":       Published(1500, 1e-4, 5e-7),
}  # fmt: skip


def settings(method: str, **given: Any) -> Owning:
    """The settings of a method: as its authors have them, but for what is given (None is not)."""
    row = METHODS[method]
    told = {name: value for name, value in given.items() if value is not None}
    rank = given.get("rank", Owning.rank)
    untold = {"steps": row.steps, "lr": row.full_lr if rank is None else row.lora_lr}
    untold |= {"batch": 1, "accumulate": row.accumulate, "ema": row.ema, "warmup": 0, "decay": 0.0}
    return Owning(**{**untold, **told, "rank": rank})


@dataclass(frozen=True)
class Learning:
    """A method at work: what learns, its loss, the model as it then is, and the file or folder that is kept of it."""

    learner: Learner
    loss: Loss
    live: Live
    model: Callable[[Learner], StableDiffusion]
    keep: Callable[[Learner, Path], Path]
    rates: Mapping[str, float] = field(default_factory=dict)
    on: Callable[[LatentDataset], Loss] | None = None  # the same loss on other pictures, with all captions read
    passes: int = 1  # through the U-Net, before the backward


def finetuning(model: StableDiffusion, data: LatentDataset, how: Owning) -> Learning:
    """Pictures with captions: the U-Net learns on, all of it or a LoRA, and the text tower if it is asked to."""
    live, learner, kept = ready(model, how)

    def on(pictures: LatentDataset, dropout: float = 0.0) -> Loss:
        def loss(_: nn.Module, k: int) -> Tensor:
            key = generator(how.seed, "finetune", k)
            latents, captions = pictures.batch(how.batch, key)
            dropped = (torch.rand(how.batch, generator=key) < dropout).tolist()
            texts = ["" if drop else text for text, drop in zip(captions, dropped, strict=True)]
            return told(live, latents, live.cond(texts), how, key)

        return loss

    captions = list(dict.fromkeys(text for texts in data.captions for text in texts))
    live.expect(captions)
    live.remember(["", *captions])
    rates = {"text": how.text_rate}
    return Learning(learner, on(data, how.caption_dropout), live, kept.model, kept.keep, rates, on)


def dreambooth(model: StableDiffusion, data: LatentDataset, others: LatentDataset | None, how: Owning) -> Learning:
    """A rare word becomes the pictures of `data`, while `others`, of its class, stay what they are.

    Source: Ruiz et al., "DreamBooth" (2208.12242), equation 2.
    """
    live, learner, kept = ready(model, how)
    live.expect([text for owned in (data, others) if owned is not None for texts in owned.captions for text in texts])

    def loss(_: nn.Module, k: int) -> Tensor:
        key = generator(how.seed, "dreambooth", k)
        latents, captions = data.batch(how.batch, key)
        own = told(live, latents, live.cond(captions), how, key)
        if others is None:
            return own
        latents, captions = others.batch(how.batch, key)
        return own + how.prior * told(live, latents, live.cond(captions), how, key)

    passes = 1 if others is None else 2
    return Learning(learner, loss, live, kept.model, kept.keep, {"text": how.text_rate}, passes=passes)


def inversion(
    model: StableDiffusion,
    data: LatentDataset,
    word: str,
    start: str,
    how: Owning,
    templates: Sequence[str] = TEMPLATES,
) -> Learning:
    """A new word learns to mean what the pictures show; all else stays as it is.

    Source: Gal et al., "An Image is Worth One Word" (2208.01618), equation 2. It begins as the word `start`, and is
    kept in small letters, as prompts are read.
    """
    begun = first_vectors(model, start, how.vectors)
    tokenizer, text = taught(model.tokenizer, unpacked(shallow_clone(model.text)), [Concept(word, begun)])
    vectors = nn.Parameter(begun.float())
    text.token = cast(nn.Embedding, WithWord(model.text.token.weight[: len(tokenizer) - how.vectors], vectors))
    live = Live(model, unpacked(shallow_clone(model.unet)), text, how)
    live.tokenizer = tokenizer
    word = small_word(word)
    live.expect([template.format(word) for template in templates])

    def loss(_: nn.Module, k: int) -> Tensor:
        key = generator(how.seed, "inversion", k)
        latents = data.batch(how.batch, key)[0]
        chosen = torch.randint(len(templates), (how.batch,), generator=key).tolist()
        return told(live, latents, live.cond([templates[i].format(word) for i in chosen]), how, key)

    def concept(learner: Learner) -> Concept:
        return Concept(word, learner.values("word")["vectors"])

    def drawn(learner: Learner) -> StableDiffusion:
        known, tower = taught(model.tokenizer, model.text, [concept(learner)])
        return replace(model, tokenizer=known, text=tower)

    def keep(learner: Learner, folder: Path) -> Path:
        path = folder / "word.safetensors"
        write_embedding(concept(learner), path)
        return path

    return Learning(Learner({"word": {"vectors": vectors}}), loss, live, drawn, keep)


def nearer(model: StableDiffusion, data: LatentDataset, text: str, how: Owning) -> Learning:
    """Imagic's first stage: the states of a text, as the U-Net reads them, move towards a picture; nothing else learns.

    Source: Kawar et al., "Imagic" (2210.09276), equation 3.
    """
    states = nn.Parameter(model.encode_text([text]).states[0].float())
    live = Live(model, unpacked(shallow_clone(model.unet)), model.text, how)

    def loss(_: nn.Module, k: int) -> Tensor:
        key = generator(how.seed, "nearer", k)
        return told(live, data.batch(how.batch, key)[0], states.expand(how.batch, -1, -1), how, key)

    def keep(learner: Learner, folder: Path) -> Path:
        path = folder / "edit.safetensors"
        write_imagic(learner.values("states")["states"], LoRA(), path, model.unet, model.text)
        return path

    return Learning(Learner({"states": {"states": states}}), loss, live, lambda _: model, keep)


def onto(model: StableDiffusion, data: LatentDataset, states: Tensor, how: Owning) -> Learning:
    """Imagic's second stage: with those states (n, width) fixed, the U-Net learns the picture. Source: as above."""
    live, learner, kept = ready(model, replace(how, text_rate=0.0))
    states = states.float()

    def loss(_: nn.Module, k: int) -> Tensor:
        key = generator(how.seed, "onto", k)
        return told(live, data.batch(how.batch, key)[0], states.expand(how.batch, -1, -1), how, key)

    def keep(learner: Learner, folder: Path) -> Path:
        lora = LoRA(unet=kept.layers(learner, "unet")) if kept.lora else LoRA()
        path = folder / "edit.safetensors"
        write_imagic(states, lora, path, model.unet, model.text)
        if not kept.lora:
            kept.keep(learner, folder)
        return path

    return Learning(learner, loss, live, kept.model, keep)


def small_word(word: str) -> str:
    """The word as it is kept; a warning says so where that is another."""
    small = as_placeholder(word)
    if small != word:
        log.warning("word: %s is kept as %s, as prompts are read in small letters", word, small)
    return small


def first_vectors(model: StableDiffusion, start: str, count: int) -> Tensor:
    """Vectors (count, width) to begin from: those of the tokens of a word, again and again if they are too few.

    Logs a warning if they are too many. Raises RecipeError for what holds no word, or none that is known.
    """
    ids = model.tokenizer.ids(start)
    if not ids:
        raise RecipeError(f"init word: {start!r} holds no word; give one, such as toy")
    if model.tokenizer.eos in ids:
        raise RecipeError(f"init word: the model's tokenizer does not know all of {start!r}; give another, such as toy")
    if len(ids) > count:
        said = [model.tokenizer.decode([i]) for i in ids]
        tokens = ", ".join(said[:LISTED]) + (", ..." if said[LISTED:] else "")
        log.warning(
            "init word: %r has %d tokens (%s), and the word begins as the first %s; --vectors %d takes all",
            shortened(start), len(ids), tokens, said[0] if count == 1 else count, len(ids),
        )  # fmt: skip
    rows = [ids[i % len(ids)] for i in range(count)]
    return model.text.token.weight.detach()[rows].float().cpu()


def class_pictures(model: StableDiffusion, prompt: str, count: int, folder: Path) -> list[Path]:
    """Pictures of a class as the model itself draws them, in a folder: at most `count`, and those that lack are drawn.

    What is there is used if it carries no request, as photographs, or the very one that would be drawn. What was drawn
    from another prompt, by another model or with other settings, stays where it is, and a note says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = Request(prompt=prompt, seed=0).resolved(model.defaults)
    own, drawn, others = list[Path](), dict[int, Path](), list[str]()
    for path in pictures_in(folder):
        try:
            record = read_picture(path, strict=False)
        except PictureError:  # it carries no request
            own.append(path)
            continue
        if why := _unlike(record, wanted, model.about):
            others.append(f"{path.name} has {why}")
        elif record.source == "gradina":
            drawn.setdefault(cast(int, record.request.seed), path)
        else:
            own.append(path)
    if others:
        said = f"pictures that are not of the class {prompt!r} stay there and are not used ({len(others)}: {others[0]})"
        log.warning("%s: %s", folder, said)
    if own:
        said = f"pictures that do not say what they show are taken for the class {prompt!r} ({len(own)}: {own[0].name})"
        log.warning("%s: %s", folder, said)
    missing = [seed for seed in range(count) if seed not in drawn][: max(0, count - len(own) - len(drawn))]
    if missing:
        log.info("draws %d pictures of the class", len(missing))
    for seed in missing:
        drawn[seed] = unused_path(folder / f"{seed:04}.png")
        next(generate(model, replace(wanted, seed=seed))).save(drawn[seed])
    return [*own, *(path for _, path in sorted(drawn.items()))][:count]


def _unlike(record: Record, wanted: Request, model: Mapping[str, str]) -> str:
    """In what a picture is not what a model (told as in `about`) draws of a request, whatever the seed; "": in nothing.

    Of what other programs drew, the prompt counts alone.
    """
    said, about = record.request, record.model or {}
    if record.source == "gradina" and any(about.get(key) != model.get(key) for key in ("hash", "vae_hash")):
        return f"the model {about.get('name')} [{about.get('hash')}]"
    fields = [f for f in Request.__dataclass_fields__ if f != "seed"] if record.source == "gradina" else ["prompt"]
    other = next((name for name in fields if getattr(said, name) != getattr(wanted, name)), None)
    return "" if other is None else f"the {other} {getattr(said, other)!r}"
