"""The model, ready to draw: its networks, how they run, and text, pixels and latents in and out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from gradina.adapters.inject import Network as Part
from gradina.adapters.textual_inversion import Concept
from gradina.diffusion.conditioning import Cond
from gradina.diffusion.denoiser import Network
from gradina.errors import RequestError
from gradina.finite import finite
from gradina.images.tensor import to_image
from gradina.models.deepcache import DeepCache
from gradina.models.taesd import TinyDecoder
from gradina.runtime.device import DTYPES, Engine
from gradina.runtime.engines import Call, VAEDecode, with_engine
from gradina.runtime.memory import trim_heap
from gradina.runtime.offload import SequentialOffload
from gradina.weights.components import Components


@dataclass(frozen=True, eq=False, kw_only=True)
class StableDiffusion(Components):
    """A model, ready to draw: tokenizer, text tower, autoencoder, U-Net, schedule."""

    engine: Engine = "eager"  # computes the U-Net and the decoder
    offload: SequentialOffload | None = None  # with low memory: loads the networks from their files, one at a time
    tiny: TinyDecoder | None = None  # decodes previews in place of the autoencoder
    concepts: tuple[Concept, ...] = ()  # of textual inversion
    edit: Tensor | None = None  # text states (n, width) that Imagic fitted to a picture

    @property
    def device(self) -> torch.device:
        """The device of its networks."""
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its networks; latents are fp32 throughout."""
        return self.offload.dtype if self.offload else self.unet.conv_in.weight.dtype

    @property
    def about(self) -> dict[str, str]:
        """What a picture's file records of the model that drew it, with its dtype and engine."""
        names = [name for name, dtype in DTYPES.items() if dtype == self.dtype]
        engine = {"engine": self.engine} if self.engine in ("compile", "openvino") else {}
        return super().about | ({"dtype": names[0]} if names else {}) | engine

    @cached_property
    def adapted(self) -> dict[object, StableDiffusion]:
        """The last copy of it with a request's LoRAs and textual inversions, by what it was made of."""
        return {}

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str | list[int]]) -> Cond:
        """Text states of prompts, or of their tokens; a long prompt takes several chunks, and the others are padded."""
        ids, known = self.tokenizer.chunks(texts).to(self.device), len(self.text.token.weight)
        if len(self.tokenizer) > known and int(ids.max()) >= known:
            token = self.tokenizer.token(int(ids.max()))
            raise RequestError(f"prompt: {token!r} is a token that the text tower does not know; leave it out")
        states = self.on_device(self.text)(ids.flatten(0, 1)).reshape(len(texts), -1, self.text.config.width)
        return Cond(finite(states, "text tower", self.text, self.dtype))

    @torch.no_grad()
    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents (b, 4, h/8, w/8) of pixels (b, 3, h, w) in -1..1: the mean, or a sample if unit noise is given."""
        noise = None if noise is None else noise.to(self.device, self.dtype)
        z = self.on_device(self.vae).encode(pixels.to(self.device, self.dtype), noise)
        return finite(z, "autoencoder (its encoder)", self.vae, self.dtype).float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (b, 4, h, w), such as those of `Step.denoised`."""
        trim_heap()
        return self._images(self._decode, latents, "autoencoder (its decoder)", self.vae)

    @torch.no_grad()
    def preview(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (b, 4, h, w), rough but quick where a tiny decoder was loaded."""
        return (
            self.decode(latents) if self.tiny is None else self._images(self.tiny, latents, "tiny decoder", self.tiny)
        )

    def _images(self, decode: Call, latents: Tensor, what: str, network: nn.Module) -> list[Image.Image]:
        decoded = (decode(z[None].to(self.device, self.dtype))[0] for z in latents)
        return [to_image(finite(x, what, network, self.dtype).float()) for x in decoded]

    def network(self, reuse: int = 1) -> Network:
        """The U-Net with fp32 inputs and outputs, whatever its dtype; with `reuse` above 1 (DeepCache), for one run.

        Raises RequestError for a `reuse` that the engine does not have.
        """
        if reuse > 1 and self.engine in ("compile", "openvino"):
            raise RequestError(f"reuse: got {reuse}, but {self.engine} computes the U-Net as a whole; try engine eager")
        unet = DeepCache(self.on_device(self.unet), reuse) if reuse > 1 else self._unet
        return lambda x, t, cond: unet(x.to(self.dtype), t, cond.states.to(self.dtype)).float()

    def on_device(self, network: Part) -> Part:
        """One of the networks, loaded."""
        return network if self.offload is None else self.offload(network)

    @cached_property
    def _unet(self) -> Call:
        if self.offload is not None:
            return lambda *inputs: self.on_device(self.unet)(*inputs)
        return with_engine(self.unet, self.engine)

    @cached_property
    def _decode(self) -> Call:
        if self.offload is not None:
            return lambda z: self.on_device(self.vae).decode(z)
        return with_engine(VAEDecode(self.vae), self.engine, often=False)

    def save(self, path: str | PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Writes the model as a folder in the layout of diffusers, with a card; whole or not at all.

        It is stored in `dtype`, or in the dtype of its networks: fp32 keeps all that a file had.
        """
        from gradina.weights.formats.diffusers import write_folder

        write_folder(self, Path(path), dtype=dtype)
