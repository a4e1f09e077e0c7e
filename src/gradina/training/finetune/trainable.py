"""What learns when a model is made one's own, kept apart from the networks that it is a part of.

So a checkpoint holds it alone, and the model that it began from stays as it is.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gradina.adapters.inject import inject, replaced, shallow_clone
from gradina.adapters.lora import ATTENTION, Adapted, LoRA, LoRAWeights, adapt, fresh, merged
from gradina.diffusion.conditioning import Cond
from gradina.diffusion.denoiser import Denoiser, on_states
from gradina.diffusion.prediction import prediction_named
from gradina.errors import RecipeError
from gradina.files import cache_folder
from gradina.kernels.prepack import unpacked
from gradina.models.clip import TextTower
from gradina.models.unet import SpatialTransformer, UNet
from gradina.nn.conv import ResBlock
from gradina.nn.conv2d import channels_last
from gradina.pipeline.model import StableDiffusion
from gradina.training.checkpoint import once
from gradina.training.data.captioned_image import shortened
from gradina.training.data.dataset import generator
from gradina.training.loop import Settings
from gradina.training.losses import denoising, min_snr
from gradina.weights.formats.lora import write_lora
from gradina.weights.safetensors import digest

log = logging.getLogger(__name__)

HALVES = ("down", "up")
READ_AT_ONCE = 32  # texts


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
    checkpointing: bool = False  # the U-Net's blocks are recomputed in the backward: half the memory, slower
    prior: float = 1.0  # DreamBooth: weight of the pictures of the class
    vectors: int = 1  # textual inversion: tokens of the new word

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.caption_dropout <= 1:
            raise RecipeError(f"caption_dropout: got {self.caption_dropout}, expected 0 to 1")
        for name in ("rank", "vectors", "min_snr"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise RecipeError(f"{name}: got {getattr(self, name)}, expected a number above 0")
        for name in ("text_rate", "noise_offset", "prior"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RecipeError(f"{name}: got {getattr(self, name)}, expected 0, or a number above it")


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


class Recomputed(nn.Module):
    """A layer whose activations are recomputed in the backward. Source: Chen et al. 1604.06174."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return cast(Tensor, self.layer(*inputs))
        return cast(Tensor, checkpoint(self.layer, *inputs, use_reentrant=False))


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
        self.model, self.text, self.tokenizer = model, text, model.tokenizer
        self.unet = channels_last(unet, how.dtype)
        self.known: dict[str, Tensor] = {}  # states (n, width) of texts, where the text tower does not learn
        self.chunks = 1  # that the longest text takes
        if how.checkpointing:
            layers = {n: m for n, m in unet.named_modules() if isinstance(m, ResBlock | SpatialTransformer)}
            inject(unet, {name: Recomputed(layer) for name, layer in layers.items()})

    def cond(self, texts: Sequence[str]) -> Tensor:
        """Text states (b, n, width), read as prompts are: long texts in chunks, with empty ones behind the others."""
        if any(p.requires_grad for p in self.text.parameters()):
            return self._states(texts)
        for some in self._alike([text for text in dict.fromkeys(texts) if text not in self.known]):
            self.known |= dict(zip(some, self._read(some), strict=True))
        states = [self.known[text] for text in texts]
        longest = max(map(len, states))
        if any(len(x) < longest for x in states):
            (empty,) = self.cond([""])
            states = [torch.cat([x, *[empty] * ((longest - len(x)) // len(empty))]) for x in states]
        return torch.stack(states)

    def expect(self, texts: Sequence[str]) -> None:
        """Takes note of captions that will be asked for; a warning says how many are read in chunks."""
        chunks = {text: self.tokenizer.chunk_count(text) for text in texts}
        long = [text for text in chunks if chunks[text] > 1]
        self.chunks = max([self.chunks, *chunks.values()])
        if long:
            log.warning(
                "captions: %d of %d are longer than the %d tokens that the text tower reads at once; they are read in "
                "up to %d chunks, as prompts are, which takes more memory and time (the first: %r)",
                len(long), len(chunks), self.tokenizer.length - 2, self.chunks,
                shortened(" ".join(long[0].split()), 80),
            )  # fmt: skip

    def remember(self, texts: Sequence[str]) -> None:
        """Reads texts that will be asked for, unless the text tower learns: from the cache, where they are kept."""
        if any(p.requires_grad for p in self.text.parameters()) or not texts:
            return
        for some in self._alike(texts):
            ids = self.tokenizer.chunks(some).tolist()
            name = hashlib.sha256(repr((digest(self.text), ids)).encode()).hexdigest()[:24]
            path = cache_folder() / "texts" / f"{name}.safetensors"
            there = once(path, name, partial(self._kept, some))
            self.known |= dict(zip(some, there["states"], strict=True))

    def _alike(self, texts: Sequence[str]) -> list[list[str]]:
        """The texts by how many chunks they take."""
        by_chunks: dict[int, list[str]] = defaultdict(list)
        for text in texts:
            by_chunks[self.tokenizer.chunk_count(text)].append(text)
        return list(by_chunks.values())

    @torch.no_grad()
    def _read(self, texts: Sequence[str]) -> Tensor:
        parts = (texts[i : i + READ_AT_ONCE] for i in range(0, len(texts), READ_AT_ONCE))
        return torch.cat([self._states(part) for part in parts])

    def _kept(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return {"states": self._read(texts)}

    def _states(self, texts: Sequence[str]) -> Tensor:
        states: Tensor = self.text(self.tokenizer.chunks(texts).flatten(0, 1))
        return states.reshape(len(texts), -1, states.shape[-1])


def told(live: Live, latents: Tensor, cond: Tensor, how: Owning, key: torch.Generator) -> Tensor:
    """The error of what the U-Net says of latents with noise drawn from `key`: (b,)."""
    schedule, prediction = live.model.schedule, prediction_named(live.model.prediction)
    noise = torch.randn(latents.shape, generator=key)
    if how.noise_offset:
        noise = noise + how.noise_offset * torch.randn(*latents.shape[:2], 1, 1, generator=key)
    sigma = schedule.drawn(len(latents), key)
    error = denoising(Denoiser(on_states(live.unet), schedule, prediction), latents, noise, sigma, Cond(cond))
    return error if how.min_snr is None else error * min_snr(sigma, how.min_snr, prediction.name).to(error)


@dataclass(frozen=True)
class Kept:
    """How a U-Net and a text tower that learn become a model, and a file or a folder."""

    base: StableDiffusion
    lora: bool
    alpha: float

    def layers(self, learner: Learner, part: str) -> dict[str, LoRAWeights]:
        """The LoRA of a part."""
        found, values = {}, learner.values(part)
        for name in values:
            layer, _, half = name.rpartition(".")
            if half == "down":
                found[layer] = LoRAWeights(values[name], values[f"{layer}.up"], self.alpha)
        return found

    def model(self, learner: Learner) -> StableDiffusion:
        """The model with what was learnt."""
        if self.lora:
            unet = merged(self.base.unet, (self.layers(learner, "unet"), 1.0))
            text = merged(self.base.text, (self.layers(learner, "text"), 1.0))
        else:
            unet = replaced(self.base.unet, learner.values("unet"))
            text = replaced(self.base.text, learner.values("text"))
        return replace(self.base, unet=unet, text=text)

    def keep(self, learner: Learner, folder: Path) -> Path:
        """Writes a LoRA as a file, or else the whole model as a folder."""
        if not self.lora:
            self.model(learner).save(folder / "model")
            return folder / "model"
        made = LoRA(unet=self.layers(learner, "unet"), text=self.layers(learner, "text"))
        path = folder / "lora.safetensors"
        write_lora(made, path, self.base.unet, self.base.text, "kohya")  # which diffusers reads, too
        return path


def ready(model: StableDiffusion, how: Owning) -> tuple[Live, Learner, Kept]:
    """The networks ready to learn: what learns in fp32, apart; what stays, in the model's own numbers."""
    parts: dict[str, dict[str, nn.Parameter]] = {}
    networks: dict[str, nn.Module] = {
        "unet": unpacked(shallow_clone(model.unet)),
        "text": unpacked(shallow_clone(model.text)),
    }
    for part, network in networks.items():
        if part == "text" and not how.text_rate:
            continue
        if how.rank is None:
            parts[part] = {name: nn.Parameter(p.detach().float().clone()) for name, p in network.named_parameters()}
            networks[part] = replaced(network, parts[part])
        else:
            layers = fresh(network, how.rank, generator(how.seed, part), how.targets, how.alpha)
            beside = cast(Mapping[str, Adapted], adapt(network, layers).layers)
            halves = {f"{name}.{half}": getattr(layer, half) for name, layer in beside.items() for half in HALVES}
            parts[part] = halves
    unet, text = cast(UNet, networks["unet"]), cast(TextTower, networks["text"])
    if how.rank is None:  # so that the weights it began from need not stay in memory
        model = replace(model, unet=shallow_clone(unet), text=shallow_clone(text))
    result = Kept(model, how.rank is not None, float(how.alpha or how.rank or 1))
    return Live(model, unet, text, how), Learner(parts), result
