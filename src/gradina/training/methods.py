"""Ways to make a model one's own, as rows over the one loop: what learns, from which pictures and words, by which loss.

What learns is kept apart from the networks that it is a part of (`Learner`), so that a checkpoint holds it alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gradina.adapters.inject import inject, replaced, twin
from gradina.adapters.lora import ATTENTION, Adapted, LoRA, Thin, adapt, fresh, merged
from gradina.adapters.textual import Concept, taught
from gradina.diffusion.denoiser import Denoiser
from gradina.diffusion.prediction import prediction_named
from gradina.errors import RecipeError
from gradina.models.clip import TextTower
from gradina.models.unet import SpatialTransformer, UNet
from gradina.nn.conv import ResBlock
from gradina.nn.packed import unpacked
from gradina.pipeline import StableDiffusion, generate
from gradina.request import Request
from gradina.training.data import generator
from gradina.training.loop import Loss, Settings
from gradina.training.objectives import denoising, min_snr
from gradina.training.owned import Owned
from gradina.weights.concepts import write_concept
from gradina.weights.edits import write_edit
from gradina.weights.loras import write_lora

log = logging.getLogger(__name__)

TEMPLATES = ("{}", "a {}", "a picture of {}", "a picture of a {}", "one {}", "the {}", "a drawing of {}", "my {}")


@dataclass(frozen=True, kw_only=True)
class Owning(Settings):
    """How a model is made one's own."""

    seed: int = 0
    rank: int | None = 8  # of a LoRA; None: all weights of the U-Net learn
    alpha: float | None = None  # of the LoRA; None: its rank
    targets: tuple[str, ...] = ATTENTION  # patterns of the layers that it goes beside
    text_rate: float = 0.0  # share of the learning rate at which the text tower learns, too
    caption_dropout: float = 0.1
    min_snr: float | None = None  # the ratio of signal to noise from which on errors weigh less
    noise_offset: float = 0.0  # how much of the noise is the same for all places: lets light and dark be learnt
    checkpointing: bool = False  # the U-Net's blocks are computed again on the way back: half the memory, slower
    prior: float = 1.0  # DreamBooth: weight of the pictures of the class
    vectors: int = 1  # textual inversion: tokens of the new word


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


class Learner(nn.Module):
    """The parameters that learn, by part (unet, text, word) and name; others hold the same tensors."""

    def __init__(self, parts: Mapping[str, Mapping[str, nn.Parameter]]) -> None:
        super().__init__()
        for part, parameters in parts.items():
            self.add_module(part, _Named(parameters))

    def values(self, part: str) -> dict[str, Tensor]:
        """What a part has learnt, by name."""
        named = getattr(self, part, None)
        return {} if named is None else {n.replace("/", "."): p.detach() for n, p in named.named_parameters()}


class _Named(nn.Module):
    """Parameters by the names that they have elsewhere."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            self.register_parameter(name.replace(".", "/"), parameter)


@dataclass(frozen=True)
class Learning:
    """A method at work: what learns, its loss, the model as it then is, and the file or folder that is kept of it."""

    learner: Learner
    loss: Loss
    live: Live
    model: Callable[[Learner], StableDiffusion]
    keep: Callable[[Learner, Path], Path]
    rates: Mapping[str, float] = field(default_factory=dict)
    on: Callable[[Owned], Loss] | None = None  # the same loss on other pictures, with all captions read


class Recomputed(nn.Module):
    """A layer whose inner values are not kept for the way back. Source: Chen et al. 1604.06174."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return cast(Tensor, self.layer(*inputs))
        return cast(Tensor, checkpoint(self.layer, *inputs, use_reentrant=False))


def finetuning(model: StableDiffusion, data: Owned, how: Owning) -> Learning:
    """Pictures with captions: the U-Net learns on, all of it or a LoRA, and the text tower if it is asked to."""
    live, learner, kept = _live(model, how)

    def on(pictures: Owned, dropout: float = 0.0) -> Loss:
        def loss(_: nn.Module, k: int) -> Tensor:
            key = generator(how.seed, "finetune", k)
            latents, captions = pictures.batch(how.batch, key)
            dropped = (torch.rand(how.batch, generator=key) < dropout).tolist()
            texts = ["" if drop else text for text, drop in zip(captions, dropped, strict=True)]
            return told(live, latents, live.cond(texts), how, key)

        return loss

    rates = {"text": how.text_rate}
    return Learning(learner, on(data, how.caption_dropout), live, kept.model, kept.keep, rates, on)


def dreambooth(model: StableDiffusion, data: Owned, others: Owned | None, how: Owning) -> Learning:
    """A rare word becomes the pictures of `data`, while `others`, of its class, stay what they are.

    Source: Ruiz et al., "DreamBooth" (2208.12242), equation 2.
    """
    live, learner, kept = _live(model, how)

    def loss(_: nn.Module, k: int) -> Tensor:
        key = generator(how.seed, "dreambooth", k)
        latents, captions = data.batch(how.batch, key)
        own = told(live, latents, live.cond(captions), how, key)
        if others is None:
            return own
        latents, captions = others.batch(how.batch, key)
        return own + how.prior * told(live, latents, live.cond(captions), how, key)

    return Learning(learner, loss, live, kept.model, kept.keep, {"text": how.text_rate})


def inversion(
    model: StableDiffusion,
    data: Owned,
    word: str,
    start: str,
    how: Owning,
    templates: Sequence[str] = TEMPLATES,
) -> Learning:
    """A new word learns to mean what the pictures show; all else stays as it is.

    Source: Gal et al., "An Image is Worth One Word" (2208.01618), equation 2. It begins as the word `start`.
    """
    begun = first_vectors(model, start, how.vectors)
    tokenizer, text = taught(model.tokenizer, unpacked(twin(model.text)), [Concept(word, begun)])
    vectors = nn.Parameter(begun.float())
    text.token = cast(nn.Embedding, WithWord(model.text.token.weight[: len(tokenizer) - how.vectors], vectors))
    live = Live(model, unpacked(twin(model.unet)), text, how)
    live.tokenizer = tokenizer

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
        write_concept(concept(learner), path)
        return path

    return Learning(Learner({"word": {"vectors": vectors}}), loss, live, drawn, keep)


def nearer(model: StableDiffusion, data: Owned, text: str, how: Owning) -> Learning:
    """Imagic's first stage: the states of a text, as the U-Net reads them, move towards a picture; nothing else learns.

    Source: Kawar et al., "Imagic" (2210.09276), equation 3.
    """
    states = nn.Parameter(model.read([text])[0].float())
    live = Live(model, unpacked(twin(model.unet)), model.text, how)

    def loss(_: nn.Module, k: int) -> Tensor:
        key = generator(how.seed, "nearer", k)
        return told(live, data.batch(how.batch, key)[0], states.expand(how.batch, -1, -1), how, key)

    def keep(learner: Learner, folder: Path) -> Path:
        path = folder / "edit.safetensors"
        write_edit(learner.values("states")["states"], LoRA(), path, model.unet, model.text)
        return path

    return Learning(Learner({"states": {"states": states}}), loss, live, lambda _: model, keep)


def onto(model: StableDiffusion, data: Owned, states: Tensor, how: Owning) -> Learning:
    """Imagic's second stage: with those states (n, width) fixed, the U-Net learns the picture. Source: as above."""
    live, learner, kept = _live(model, replace(how, text_rate=0.0))
    states = states.float()

    def loss(_: nn.Module, k: int) -> Tensor:
        key = generator(how.seed, "onto", k)
        return told(live, data.batch(how.batch, key)[0], states.expand(how.batch, -1, -1), how, key)

    def keep(learner: Learner, folder: Path) -> Path:
        lora = LoRA(unet=kept.layers(learner, "unet")) if kept.lora else LoRA()
        path = folder / "edit.safetensors"
        write_edit(states, lora, path, model.unet, model.text)
        if not kept.lora:
            kept.keep(learner, folder)
        return path

    return Learning(learner, loss, live, kept.model, keep)


def first_vectors(model: StableDiffusion, start: str, count: int) -> Tensor:
    """Vectors (count, width) to begin from: those of the tokens of a word, again and again if they are too few."""
    ids = model.tokenizer.ids(start)
    if not ids:
        raise RecipeError(f"init word: {start!r} holds no word; give one, such as toy")
    rows = [ids[i % len(ids)] for i in range(count)]
    return model.text.token.weight.detach()[rows].float().cpu()


class WithWord(nn.Module):
    """An embedding whose last rows learn, and whose others cannot: ids (b, n) -> (b, n, width)."""

    def __init__(self, known: Tensor, new: nn.Parameter) -> None:
        super().__init__()
        self.known, self.new = nn.Parameter(known.detach(), requires_grad=False), new

    def forward(self, ids: Tensor) -> Tensor:
        last = len(self.known)
        old = F.embedding(ids.clamp(max=last - 1), self.known)
        own = F.embedding((ids - last).clamp(min=0), self.new).to(old.dtype)
        return torch.where((ids >= last)[..., None], own, old)


class Live:
    """The networks as they learn, and what they are asked."""

    def __init__(self, model: StableDiffusion, unet: UNet, text: TextTower, how: Owning) -> None:
        self.model, self.unet, self.text, self.tokenizer = model, unet, text, model.tokenizer
        self.known: dict[str, Tensor] = {}  # states of texts, where the text tower does not learn
        if how.checkpointing:
            layers = {n: m for n, m in unet.named_modules() if isinstance(m, ResBlock | SpatialTransformer)}
            inject(unet, {name: Recomputed(layer) for name, layer in layers.items()})

    def cond(self, texts: Sequence[str]) -> Tensor:
        """Text states (b, n, width)."""
        if any(p.requires_grad for p in self.text.parameters()):
            return self.text(self.tokenizer(texts))
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            with torch.no_grad():
                self.known |= dict(zip(new, self.text(self.tokenizer(new)), strict=True))
        return torch.stack([self.known[text] for text in texts])


def told(live: Live, latents: Tensor, cond: Tensor, how: Owning, key: torch.Generator) -> Tensor:
    """The error of what the U-Net says of latents with noise drawn from `key`: (b,)."""
    schedule, prediction = live.model.schedule, prediction_named(live.model.prediction)
    noise = torch.randn(latents.shape, generator=key)
    if how.noise_offset:
        noise = noise + how.noise_offset * torch.randn(*latents.shape[:2], 1, 1, generator=key)
    sigma = schedule.drawn(len(latents), key)
    error = denoising(Denoiser(live.unet, schedule, prediction), latents, noise, sigma, cond)
    return error if how.min_snr is None else error * min_snr(sigma, how.min_snr, prediction.name).to(error)


@dataclass(frozen=True)
class _Kept:
    """How a U-Net and a text tower that learn become a model, and a file or a folder."""

    base: StableDiffusion
    lora: bool
    alphas: Mapping[str, float]

    def layers(self, learner: Learner, part: str) -> dict[str, Thin]:
        """The LoRA of a part."""
        found, values = {}, learner.values(part)
        for name in values:
            layer, _, half = name.rpartition(".")
            if half == "down":
                found[layer] = Thin(values[name], values[f"{layer}.up"], self.alphas[part])
        return found

    def model(self, learner: Learner) -> StableDiffusion:
        """The model with what was learnt."""
        if self.lora:
            unet = merged(self.base.unet, (self.layers(learner, "unet"), 1.0))
            text = merged(self.base.text, (self.layers(learner, "text"), 1.0))
        else:
            unet = replaced(unpacked(twin(self.base.unet)), _as(learner.values("unet"), self.base.dtype))
            text = replaced(unpacked(twin(self.base.text)), _as(learner.values("text"), self.base.dtype))
        return replace(self.base, unet=unet, text=text)

    def keep(self, learner: Learner, folder: Path) -> Path:
        """Writes a LoRA as a file, or else the whole model as a folder."""
        if not self.lora:
            self.model(learner).save(folder / "model")
            return folder / "model"
        made = LoRA(unet=self.layers(learner, "unet"), text=self.layers(learner, "text"))
        path = folder / "lora.safetensors"
        write_lora(made, path, self.base.unet, self.base.text)
        return path


def _as(values: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) for name, value in values.items()}


def _live(model: StableDiffusion, how: Owning) -> tuple[Live, Learner, _Kept]:
    """The networks ready to learn: what learns in fp32, apart; what stays, in the model's own numbers."""
    parts: dict[str, dict[str, nn.Parameter]] = {}
    networks: dict[str, nn.Module] = {"unet": unpacked(twin(model.unet)), "text": unpacked(twin(model.text))}
    for part, network in networks.items():
        if part == "text" and not how.text_rate:
            continue
        if how.rank is None:
            values = {name: nn.Parameter(p.detach().float().clone()) for name, p in network.named_parameters()}
            for name, value in values.items():
                parent, _, leaf = name.rpartition(".")
                network.get_submodule(parent)._parameters[leaf] = value
            parts[part] = values
        else:
            layers = fresh(network, how.rank, generator(how.seed, part), how.targets, how.alpha)
            beside = cast(Mapping[str, Adapted], adapt(network, layers).layers)
            halves = {f"{name}.{half}": getattr(layer, half) for name, layer in beside.items() for half in HALVES}
            parts[part] = halves
    alpha = float(how.alpha or how.rank or 1)
    live = Live(model, cast(UNet, networks["unet"]), cast(TextTower, networks["text"]), how)
    return live, Learner(parts), _Kept(model, how.rank is not None, dict.fromkeys(networks, alpha))


HALVES = ("down", "up")


def class_pictures(model: StableDiffusion, prompt: str, count: int, folder: Path) -> Iterable[Path]:
    """Pictures of a class as the model itself draws them, in a folder; those that are there already are used again."""
    folder.mkdir(parents=True, exist_ok=True)
    there = sorted(folder.glob("*.png"))[:count]
    if len(there) < count:
        log.info("draws %d pictures of the class", count - len(there))
    for seed in range(len(there), count):
        (picture,) = generate(model, Request(prompt=prompt, seed=seed))
        picture.save(folder / f"{seed:04}.png")
    return sorted(folder.glob("*.png"))[:count]
