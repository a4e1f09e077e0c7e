"""The methods: what is trained, on which pictures and texts, by which loss; all run in the one loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from gradina.adapters.inject import shallow_clone
from gradina.adapters.lora import LoRA
from gradina.adapters.textual_inversion import Concept, with_concepts
from gradina.diffusion.conditioning import Cond
from gradina.errors import PictureError, RecipeError
from gradina.files import unused_path
from gradina.images.folder import pictures_in
from gradina.images.metadata import Record, read_picture
from gradina.models.tokenizer import as_placeholder
from gradina.pipeline.generate import generate
from gradina.pipeline.model import StableDiffusion
from gradina.request import Request
from gradina.runtime.prepack import restore
from gradina.training.data.captioned_image import shortened
from gradina.training.data.dataset import generator
from gradina.training.data.latents import LatentDataset
from gradina.training.finetune.config import METHODS, FinetuneConfig
from gradina.training.finetune.trainable import ExtendedEmbedding, FinetuneState, Trainable, prepared
from gradina.training.loop import Loss
from gradina.weights.formats.imagic import write_imagic
from gradina.weights.formats.textual_inversion import write_embedding

log = logging.getLogger(__name__)

LISTED_TOKENS = 12  # in a message
TEMPLATES = ("{}", "a {}", "a picture of {}", "a picture of a {}", "one {}", "the {}", "a drawing of {}", "my {}")


@dataclass(frozen=True)
class Method:
    """A method ready to run: the trainable parameters, the loss, and how they become a model and a file or folder."""

    trainable: Trainable
    loss: Loss
    state: FinetuneState
    model: Callable[[Trainable], StableDiffusion]
    write: Callable[[Trainable, Path], Path]
    rates: Mapping[str, float] = field(default_factory=dict)  # factors of the learning rate, by part
    loss_on: Callable[[LatentDataset], Loss] | None = None  # the same loss on other pictures, without caption dropout
    passes: int = 1  # through the U-Net for each loss


def finetuning(model: StableDiffusion, data: LatentDataset, config: FinetuneConfig) -> Method:
    """Fine-tunes on pictures with captions: the whole U-Net or a LoRA, and the text tower where it has a rate."""
    state, trainable, export = prepared(model, config)

    def loss_on(pictures: LatentDataset, dropout: float = 0.0) -> Loss:
        def loss(_: nn.Module, k: int) -> Tensor:
            key = generator(config.seed, METHODS["finetune"].key, k)
            latents, captions = pictures.batch(config.batch, key)
            dropped = (torch.rand(config.batch, generator=key) < dropout).tolist()
            texts = ["" if drop else text for text, drop in zip(captions, dropped, strict=True)]
            return state.loss(latents, state.cond(texts), key)

        return loss

    captions = list(dict.fromkeys(text for texts in data.captions for text in texts))
    state.announce(captions)
    state.cache_texts(["", *captions])
    loss, rates = loss_on(data, config.caption_dropout), {"text": config.text_rate}
    return Method(trainable, loss, state, export.model, export.write, rates, loss_on)


def dreambooth(
    model: StableDiffusion, data: LatentDataset, class_data: LatentDataset | None, config: FinetuneConfig
) -> Method:
    """A rare word learns the subject of `data`, while `class_data`, pictures of its class, preserve the prior.

    Source: Ruiz et al., "DreamBooth" (2208.12242), equation 2.
    """
    state, trainable, export = prepared(model, config)
    both = [data] if class_data is None else [data, class_data]
    state.announce([text for pictures in both for texts in pictures.captions for text in texts])

    def loss(_: nn.Module, k: int) -> Tensor:
        key = generator(config.seed, METHODS["dreambooth"].key, k)
        latents, captions = data.batch(config.batch, key)
        error = state.loss(latents, state.cond(captions), key)
        if class_data is None:
            return error
        latents, captions = class_data.batch(config.batch, key)
        return error + config.prior * state.loss(latents, state.cond(captions), key)

    rates = {"text": config.text_rate}
    return Method(trainable, loss, state, export.model, export.write, rates, passes=len(both))


def textual_inversion(
    model: StableDiffusion, data: LatentDataset, word: str, start: str, config: FinetuneConfig
) -> Method:
    """A new word learns the subject of the pictures; nothing else is trained.

    It begins as the word `start`, and is kept in lower case, as prompts are read. Source: Gal et al., "An Image is
    Worth One Word" (2208.01618), equation 2.
    """
    initial = first_vectors(model, start, config.vectors)
    tokenizer, text = with_concepts(model.tokenizer, restore(shallow_clone(model.text)), [Concept(word, initial)])
    vectors = nn.Parameter(initial)
    known = model.text.token.weight[: len(tokenizer) - config.vectors]
    text.token = cast(nn.Embedding, ExtendedEmbedding(known, vectors))
    state = FinetuneState(model, restore(shallow_clone(model.unet)), text, config)
    state.tokenizer = tokenizer
    lower = as_placeholder(word)
    if lower != word:
        log.warning("word: %s is kept as %s, as prompts are read in lower case", word, lower)
        word = lower
    state.announce([template.format(word) for template in TEMPLATES])

    def loss(_: nn.Module, k: int) -> Tensor:
        key = generator(config.seed, METHODS["textual_inversion"].key, k)
        latents = data.batch(config.batch, key)[0]
        chosen = torch.randint(len(TEMPLATES), (config.batch,), generator=key).tolist()
        return state.loss(latents, state.cond([TEMPLATES[i].format(word) for i in chosen]), key)

    def concept(trained: Trainable) -> Concept:
        return Concept(word, trained.values("word")["vectors"])

    def with_word(trained: Trainable) -> StableDiffusion:
        extended, tower = with_concepts(model.tokenizer, model.text, [concept(trained)])
        return replace(model, tokenizer=extended, text=tower)

    def write(trained: Trainable, folder: Path) -> Path:
        path = folder / "word.safetensors"
        write_embedding(concept(trained), path)
        return path

    return Method(Trainable({"word": {"vectors": vectors}}), loss, state, with_word, write)


def imagic_embedding(model: StableDiffusion, data: LatentDataset, text: str, config: FinetuneConfig) -> Method:
    """Imagic's first stage: the states of a text are optimised for a picture; the networks are frozen.

    Source: Kawar et al., "Imagic" (2210.09276), equation 3.
    """
    states = nn.Parameter(model.encode_text([text]).states[0].float())
    state = FinetuneState(model, restore(shallow_clone(model.unet)), model.text, config)
    loss = imagic_loss(state, data, states, "imagic_embedding")

    def write(trained: Trainable, folder: Path) -> Path:
        path = folder / "edit.safetensors"
        write_imagic(trained.values("states")["states"], LoRA(), path, model.unet, model.text)
        return path

    return Method(Trainable({"states": {"states": states}}), loss, state, lambda _: model, write)


def imagic_finetune(model: StableDiffusion, data: LatentDataset, states: Tensor, config: FinetuneConfig) -> Method:
    """Imagic's second stage: the U-Net is fine-tuned on the picture with those states (n, width). Source: as above."""
    state, trainable, export = prepared(model, replace(config, text_rate=0.0))
    states = states.float()
    loss = imagic_loss(state, data, states, "imagic_finetune")

    def write(trained: Trainable, folder: Path) -> Path:
        lora = LoRA(unet=export.layers(trained, "unet")) if export.lora else LoRA()
        path = folder / "edit.safetensors"
        write_imagic(states, lora, path, model.unet, model.text)
        if not export.lora:
            export.write(trained, folder)
        return path

    return Method(trainable, loss, state, export.model, write)


def imagic_loss(state: FinetuneState, data: LatentDataset, states: Tensor, method: str) -> Loss:
    """The denoising loss on the picture with text states (n, width)."""

    def loss(_: nn.Module, k: int) -> Tensor:
        batch, key = state.config.batch, generator(state.config.seed, METHODS[method].key, k)
        return state.loss(data.batch(batch, key)[0], Cond(states[None]).expand(batch), key)

    return loss


def first_vectors(model: StableDiffusion, start: str, count: int) -> Tensor:
    """Initial vectors (count, width): a word's embeddings, repeated if too few; RecipeError if it is unknown."""
    ids = model.tokenizer.ids(start)
    if not ids:
        raise RecipeError(f"init word: {start!r} holds no word; give one, such as toy")
    if model.tokenizer.eos in ids:
        raise RecipeError(f"init word: the model's tokenizer does not know all of {start!r}; give another, such as toy")
    if len(ids) > count:
        names = [model.tokenizer.decode([i]) for i in ids]
        tokens = ", ".join(names[:LISTED_TOKENS]) + (", ..." if names[LISTED_TOKENS:] else "")
        log.warning(
            "init word: %r has %d tokens (%s), and the word begins as the first %s; --vectors %d takes all",
            shortened(start), len(ids), tokens, names[0] if count == 1 else count, len(ids),
        )  # fmt: skip
    rows = [ids[i % len(ids)] for i in range(count)]
    return model.text.token.weight.detach()[rows].float()


def class_pictures(model: StableDiffusion, prompt: str, count: int, folder: Path) -> list[Path]:
    """At most `count` pictures of a class in a folder; missing ones are drawn by the model.

    Pictures there are used if they carry no request, as photographs do, or the one that would be drawn. Those of
    another prompt, model or settings are left alone, and a warning says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = Request(prompt=prompt, seed=0).resolved(model.defaults)
    unmarked, drawn, others = list[Path](), dict[int, Path](), list[str]()
    for path in pictures_in(folder):
        try:
            record = read_picture(path, strict=False)
        except PictureError:  # it carries no request
            unmarked.append(path)
            continue
        if difference := _difference(record, wanted, model.about):
            others.append(f"{path.name} has {difference}")
        elif record.source == "gradina":
            drawn.setdefault(cast(int, record.request.seed), path)
        else:
            unmarked.append(path)
    if others:
        note = "%s: pictures that are not of the class %r stay there and are not used (%d: %s)"
        log.warning(note, folder, prompt, len(others), others[0])
    if unmarked:
        note = "%s: pictures that do not say what they show are taken for the class %r (%d: %s)"
        log.warning(note, folder, prompt, len(unmarked), unmarked[0].name)
    missing = [seed for seed in range(count) if seed not in drawn][: max(0, count - len(unmarked) - len(drawn))]
    if missing:
        log.info("draws %d pictures of the class", len(missing))
    for seed in missing:
        drawn[seed] = unused_path(folder / f"{seed:04}.png")
        next(generate(model, replace(wanted, seed=seed))).save(drawn[seed])
    return [*unmarked, *(path for _, path in sorted(drawn.items()))][:count]


def _difference(record: Record, wanted: Request, model: Mapping[str, str]) -> str:
    """How a picture differs from what a model (by its `about`) draws of a request with any seed; "" if it does not.

    For pictures of other programs only the prompt counts.
    """
    request, about = record.request, record.model or {}
    if record.source == "gradina" and any(about.get(key) != model.get(key) for key in ("hash", "vae_hash")):
        return f"the model {about.get('name')} [{about.get('hash')}]"
    fields = [f for f in Request.__dataclass_fields__ if f != "seed"] if record.source == "gradina" else ["prompt"]
    other = next((name for name in fields if getattr(request, name) != getattr(wanted, name)), None)
    return "" if other is None else f"the {other} {getattr(request, other)!r}"
