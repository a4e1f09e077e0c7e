"""The model, ready to draw: its networks, how they run, and pixels, latents and states in and out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gradina.adapters.inject import Network as Part
from gradina.adapters.lora import merged
from gradina.adapters.textual_inversion import Concept, taught
from gradina.diffusion.conditioning import Cond
from gradina.diffusion.denoiser import Network
from gradina.errors import RequestError
from gradina.files import file_sha256
from gradina.finite import finite
from gradina.models.deepcache import DeepCache
from gradina.models.taesd import TinyDecoder
from gradina.nn.memory import trim_heap
from gradina.request import Request, parse_concept
from gradina.runtime.device import DTYPES, Engine
from gradina.runtime.engines import Call, Decoding, with_engine
from gradina.runtime.offload import SequentialOffload
from gradina.weights.components import Components
from gradina.weights.formats.lora import read_lora
from gradina.weights.formats.textual_inversion import read_embedding


@dataclass(frozen=True, eq=False, kw_only=True)
class StableDiffusion(Components):
    """A model, ready to draw: tokenizer, text tower, autoencoder, U-Net, schedule."""

    engine: Engine = "eager"  # how U-Net and decoder are computed
    lean: SequentialOffload | None = None  # in little memory: what takes the networks out of their files, one at a time
    tiny: TinyDecoder | None = None  # what previews are decoded by, if not by the autoencoder
    concepts: tuple[Concept, ...] = ()  # that were added to its words

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type its networks compute in; latents are fp32 throughout."""
        return self.lean.dtype if self.lean else self.unet.conv_in.weight.dtype

    def adapted(self, request: Request) -> StableDiffusion:
        """This model with the LoRAs of a request in its weights, and its concepts among its words.

        It stays as it is itself; what a request asked for last is kept for the next. Raises WeightsError for a file
        that does not fit.
        """
        loras = request.loras if request.edit is None else (*request.loras, (request.edit[0], 1.0))
        files = (*(parse_concept(one)[1] for one in request.concepts), *(path for path, _ in loras))
        if not files:
            return self
        key = (request.concepts, loras, tuple(file_sha256(file) if Path(file).is_file() else "" for file in files))
        if key not in self._adapted:
            stack = [(read_lora(path, self.unet, self.text), scale) for path, scale in loras]
            unet = merged(self.unet, *((lora.unet, scale) for lora, scale in stack))
            text = merged(self.text, *((lora.text, scale) for lora, scale in stack))
            concepts = tuple(map(read_embedding, request.concepts))
            tokenizer, text = taught(self.tokenizer, text, concepts)
            self._adapted.clear()
            self._adapted[key] = replace(self, unet=unet, text=text, tokenizer=tokenizer, concepts=concepts)
        return self._adapted[key]

    @cached_property
    def _adapted(self) -> dict[object, StableDiffusion]:
        return {}

    @property
    def about(self) -> dict[str, str]:
        """What a picture's file says of the model that drew it: also in which numbers it computed."""
        named = [name for name, dtype in DTYPES.items() if dtype == self.dtype]
        engine = {"engine": self.engine} if self.engine in ("compile", "openvino") else {}
        return super().about | ({"dtype": named[0]} if named else {}) | engine

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Cond:
        """Text states of prompts; a long prompt is encoded in chunks, and the others are padded to as many."""
        ids, known = self.tokenizer.chunks(texts).to(self.device), len(self.text.token.weight)
        if len(self.tokenizer) > known and int(ids.max()) >= known:
            token = self.tokenizer.token(int(ids.max()))
            raise RequestError(f"prompt: {token!r} is a token that the text tower does not know; leave it out")
        states = self.awake(self.text)(ids.flatten(0, 1)).reshape(len(texts), -1, self.text.config.width)
        return Cond(finite(states, "text tower", self.text, self.dtype))

    @torch.no_grad()
    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents (b, 4, h/8, w/8) of pixels (b, 3, h, w) in -1..1: the mean, or a sample if unit noise is given."""
        given = None if noise is None else noise.to(self.device, self.dtype)
        z = self.awake(self.vae).encode(pixels.to(self.device, self.dtype), given)
        return finite(z, "autoencoder (its encoder)", self.vae, self.dtype).float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (b, 4, h, w), such as those of `Step.denoised`."""
        trim_heap()
        decoded = (self._decode(z[None].to(self.device, self.dtype))[0] for z in latents)
        return [to_image(finite(x, "autoencoder (its decoder)", self.vae, self.dtype).float()) for x in decoded]

    @torch.no_grad()
    def preview(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (b, 4, h, w), rough but quick where a tiny decoder was loaded."""
        if self.tiny is None:
            return self.decode(latents)
        decoded = (self.tiny(z[None].to(self.device, self.dtype))[0] for z in latents)
        return [to_image(finite(x, "tiny decoder", self.tiny, self.dtype).float()) for x in decoded]

    def network(self, reuse: int = 1) -> Network:
        """The U-Net in its own number type, given fp32 and giving fp32; above 1, `reuse` makes it serve one walk only.

        Raises RequestError for a `reuse` that the engine does not have.
        """
        if reuse > 1 and self.engine in ("compile", "openvino"):
            raise RequestError(f"reuse: got {reuse}, but {self.engine} computes the U-Net as a whole; try engine eager")
        unet = DeepCache(self.awake(self.unet), reuse) if reuse > 1 else self._unet
        return lambda x, t, cond: unet(x.to(self.dtype), t, cond.states.to(self.dtype)).float()

    def awake(self, network: Part) -> Part:
        """One of the networks, ready to compute."""
        return network if self.lean is None else self.lean(network)

    @cached_property
    def _unet(self) -> Call:
        if self.lean is not None:
            return lambda *inputs: self.awake(self.unet)(*inputs)
        return with_engine(self.unet, self.engine)

    @cached_property
    def _decode(self) -> Call:
        if self.lean is not None:
            return lambda z: self.awake(self.vae).decode(z)
        return with_engine(Decoding(self.vae), self.engine, often=False)

    def save(self, path: str | PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Writes the model as a folder in the layout of diffusers, with a card; whole or not at all.

        It is stored in `dtype`, or in the numbers in which it computes: those of fp32 keep all that a file had.
        """
        from gradina.weights.formats.diffusers import write_folder

        write_folder(self, Path(path), dtype=dtype)


def to_pixels(picture: Image.Image) -> Tensor:
    """A picture as (3, h, w) in -1..1."""
    values = torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32))
    return (values / 127.5 - 1).permute(2, 0, 1)


def to_image(pixels: Tensor) -> Image.Image:
    """Pixels (3, h, w) in -1..1 as a picture; what lies outside is cut off."""
    values = (pixels.cpu() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())
