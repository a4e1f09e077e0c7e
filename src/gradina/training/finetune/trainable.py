"""The trainable parameters of a model, apart from its networks: checkpoints hold them alone, the model is unchanged."""

from __future__ import annotations

import hashlib
import logging
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
from gradina.adapters.lora import LoRA, LoRALayer, LoRAWeights, adapt, initial_lora, merged
from gradina.diffusion.conditioning import Cond
from gradina.diffusion.denoiser import Denoiser, on_states
from gradina.diffusion.prediction import prediction_named
from gradina.files import cache_folder
from gradina.models.clip import TextTower
from gradina.models.unet import SpatialTransformer, UNet
from gradina.nn.conv import ResBlock
from gradina.pipeline.model import StableDiffusion
from gradina.runtime.prepack import channels_last, restore
from gradina.training.checkpoint import cached_tensors
from gradina.training.data.captioned_image import shortened
from gradina.training.data.dataset import generator
from gradina.training.finetune.config import FinetuneConfig
from gradina.training.loop import device_of
from gradina.training.losses import denoising_loss, noise_levels
from gradina.weights.formats.lora import write_lora
from gradina.weights.safetensors import digest

log = logging.getLogger(__name__)

TEXT_BATCH = 32  # texts that are encoded together


class Trainable(nn.Module):
    """The trainable parameters, by part (unet, text, word) and name; the networks hold the same tensors."""

    def __init__(self, parts: Mapping[str, Mapping[str, nn.Parameter]]) -> None:
        super().__init__()
        for part, parameters in parts.items():
            named = ((name.replace(".", "/"), p) for name, p in parameters.items())  # PyTorch allows no "." in names
            self.add_module(part, nn.ParameterDict(named))

    def values(self, part: str) -> dict[str, Tensor]:
        """The parameters of a part, by name."""
        named = getattr(self, part, None)
        return {} if named is None else {n.replace("/", "."): p.detach() for n, p in named.named_parameters()}


class Recomputed(nn.Module):
    """A layer whose activations are recomputed in the backward pass. Source: Chen et al. 1604.06174."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Tensor:
        recomputed = torch.is_grad_enabled()
        return cast(Tensor, checkpoint(self.layer, *inputs, use_reentrant=False) if recomputed else self.layer(*inputs))


class ExtendedEmbedding(nn.Module):
    """An embedding whose last rows alone are trainable: ids (b, n) -> (b, n, width)."""

    def __init__(self, known: Tensor, new: nn.Parameter) -> None:
        super().__init__()
        self.known, self.new = nn.Parameter(known.detach(), requires_grad=False), new

    def forward(self, ids: Tensor) -> Tensor:
        count = len(self.known)
        known = F.embedding(ids.clamp(max=count - 1), self.known)
        new = F.embedding((ids - count).clamp(min=0), self.new).to(known.dtype)
        return torch.where((ids >= count)[..., None], new, known)


class FinetuneState:
    """The networks in training: text states, cached where the text tower is frozen, and the denoising loss."""

    def __init__(self, model: StableDiffusion, unet: UNet, text: TextTower, config: FinetuneConfig) -> None:
        self.model, self.text, self.tokenizer, self.config = model, text, model.tokenizer, config
        self.unet = channels_last(unet, getattr(torch, config.precision))
        self.denoiser = Denoiser(on_states(self.unet), model.schedule, prediction_named(model.prediction))
        self.cached: dict[str, Tensor] = {}  # states (n, width) of texts, where the text tower is frozen
        self.chunks = 1  # of the longest text
        noise_levels(model.schedule, config)  # an empty interval is refused before training
        if config.checkpointing:
            layers = {n: m for n, m in unet.named_modules() if isinstance(m, ResBlock | SpatialTransformer)}
            inject(unet, {name: Recomputed(layer) for name, layer in layers.items()})

    @property
    def trains_text(self) -> bool:
        """Whether the text tower, or a word of its vocabulary, is trained."""
        return any(p.requires_grad for p in self.text.parameters())

    def loss(self, latents: Tensor, cond: Cond, key: torch.Generator) -> Tensor:
        """The denoising loss (b,) on latents (b, c, h, w), moved to the device of the U-Net."""
        device = device_of(self.unet)
        return denoising_loss(self.denoiser, latents.to(device), cond.to(device), key, self.config)

    def cond(self, texts: Sequence[str]) -> Cond:
        """The condition of texts, encoded as prompts are: in chunks, of which shorter texts get empty ones."""
        return Cond(self.states(texts))

    def states(self, texts: Sequence[str]) -> Tensor:
        """The text states (b, n, width)."""
        if self.trains_text:
            return self._encode(texts)
        for group in self._by_chunks([text for text in dict.fromkeys(texts) if text not in self.cached]):
            self.cached |= dict(zip(group, self._encoded(group)["states"], strict=True))
        states = [self.cached[text] for text in texts]
        longest = max(map(len, states))
        if any(len(x) < longest for x in states):
            (empty,) = self.states([""])
            states = [torch.cat([x, *[empty] * ((longest - len(x)) // len(empty))]) for x in states]
        return torch.stack(states)

    def announce(self, texts: Sequence[str]) -> None:
        """Notes the length of captions to come; a warning says how many need several chunks."""
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

    def cache_texts(self, texts: Sequence[str]) -> None:
        """Encodes texts to come, unless the text tower is trained; their states are kept on disk."""
        if self.trains_text or not texts:
            return
        for group in self._by_chunks(texts):
            ids = self.tokenizer.chunks(group).tolist()
            name = hashlib.sha256(repr((digest(self.text), ids)).encode()).hexdigest()[:24]
            path = cache_folder() / "texts" / f"{name}.safetensors"
            states = cached_tensors(path, name, partial(self._encoded, group))["states"]
            self.cached |= dict(zip(group, states, strict=True))

    def _by_chunks(self, texts: Sequence[str]) -> list[list[str]]:
        """The texts, grouped by their number of chunks."""
        groups: dict[int, list[str]] = defaultdict(list)
        for text in texts:
            groups[self.tokenizer.chunk_count(text)].append(text)
        return list(groups.values())

    @torch.no_grad()
    def _encoded(self, texts: Sequence[str]) -> dict[str, Tensor]:
        batches = [texts[i : i + TEXT_BATCH] for i in range(0, len(texts), TEXT_BATCH)]
        return {"states": torch.cat([self._encode(batch) for batch in batches])}

    def _encode(self, texts: Sequence[str]) -> Tensor:
        states: Tensor = self.text(self.tokenizer.chunks(texts).flatten(0, 1).to(device_of(self.text)))
        return states.reshape(len(texts), -1, states.shape[-1])


@dataclass(frozen=True)
class Export:
    """Makes a model, and a file or a folder, of the trained U-Net and text tower."""

    base: StableDiffusion
    lora: bool
    alpha: float

    def layers(self, trained: Trainable, part: str) -> dict[str, LoRAWeights]:
        """The LoRA of a part."""
        values = trained.values(part)
        names = [name.removesuffix(".down") for name in values if name.endswith(".down")]
        return {name: LoRAWeights(values[f"{name}.down"], values[f"{name}.up"], self.alpha) for name in names}

    def model(self, trained: Trainable) -> StableDiffusion:
        """The model with the trained parameters."""
        if self.lora:
            unet = merged(self.base.unet, (self.layers(trained, "unet"), 1.0))
            text = merged(self.base.text, (self.layers(trained, "text"), 1.0))
        else:
            unet = replaced(self.base.unet, trained.values("unet"))
            text = replaced(self.base.text, trained.values("text"))
        return replace(self.base, unet=unet, text=text)

    def write(self, trained: Trainable, folder: Path) -> Path:
        """Writes a LoRA as a file, or else the whole model as a folder."""
        if not self.lora:
            self.model(trained).save(folder / "model")
            return folder / "model"
        lora = LoRA(unet=self.layers(trained, "unet"), text=self.layers(trained, "text"))
        path = folder / "lora.safetensors"
        write_lora(lora, path, self.base.unet, self.base.text, "kohya")  # which diffusers reads, too
        return path


def prepared(model: StableDiffusion, config: FinetuneConfig) -> tuple[FinetuneState, Trainable, Export]:
    """The networks ready for training: trainable parameters apart, in fp32; frozen ones in the model's dtype."""
    parts: dict[str, dict[str, nn.Parameter]] = {}
    networks: dict[str, nn.Module] = {part: restore(shallow_clone(getattr(model, part))) for part in ("unet", "text")}
    for part, network in networks.items():
        if part == "text" and not config.text_rate:
            continue
        if config.rank is None:
            parts[part] = {name: nn.Parameter(p.detach().float().clone()) for name, p in network.named_parameters()}
            networks[part] = replaced(network, parts[part])
        else:
            device = device_of(network)
            layers = initial_lora(network, config.rank, generator(config.seed, part), config.targets, config.alpha)
            layers = {n: replace(x, down=x.down.to(device), up=x.up.to(device)) for n, x in layers.items()}
            adapted = cast(Mapping[str, LoRALayer], adapt(network, layers).layers)
            parts[part] = {f"{n}.{half}": getattr(x, half) for n, x in adapted.items() for half in ("down", "up")}
    unet, text = cast(UNet, networks["unet"]), cast(TextTower, networks["text"])
    if config.rank is None:  # so that the original weights need not stay in memory
        model = replace(model, unet=shallow_clone(unet), text=shallow_clone(text))
    export = Export(model, config.rank is not None, float(config.alpha or config.rank or 1))
    return FinetuneState(model, unet, text, config), Trainable(parts), export
