"""The autoencoder as a codec: a picture to a small file of latents, and back."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from gradina.errors import PictureError
from gradina.files import atomic_write
from gradina.images.tensor import to_pixels
from gradina.pipeline.model import StableDiffusion
from gradina.tasks.metrics import psnr

FORMAT = "gradina latents 1"


@dataclass(frozen=True)
class Latents:
    """The latents of one picture (4, h/8, w/8), the picture's size in pixels, and the model that decodes them."""

    z: Tensor
    width: int
    height: int
    model: str = ""
    hash: str = ""
    vae: str = ""  # the autoencoder, if it is not the model's own

    def save(self, path: str | PathLike[str]) -> None:
        """Writes them in half precision: safetensors, one tensor `latents`. Atomic; raises DiskError."""
        about = {"format": FORMAT, "width": self.width, "height": self.height, "model": self.model, "hash": self.hash}
        about |= {"vae": self.vae} if self.vae else {}
        data = save({"latents": self.z.cpu().half().contiguous()}, {k: str(v) for k, v in about.items()})
        with atomic_write(path) as file:
            file.write(data)


def encode(model: StableDiffusion, picture: Image.Image) -> Latents:
    """The latents of a picture of any size, padded to multiples of 8 by replicating its last pixels."""
    factor = model.vae.config.factor
    width, height = picture.size
    padding = (0, -width % factor, 0, -height % factor)
    pixels = F.pad(to_pixels(picture)[None], padding, mode="replicate")
    return Latents(model.encode(pixels)[0], width, height, model.source or model.name, model.hash, model.vae_source)


def decode(model: StableDiffusion, latents: Latents) -> Image.Image:
    """The picture of latents; PictureError if they are not of this model's shape."""
    channels, factor = model.vae.config.latent_channels, model.vae.config.factor
    expected = (channels, -(-latents.height // factor), -(-latents.width // factor))
    if tuple(latents.z.shape) != expected:
        shape = "x".join(map(str, latents.z.shape))
        raise PictureError(f"latents: got {shape}, expected {'x'.join(map(str, expected))} for {model.name}")
    return model.decode(latents.z[None].float())[0].crop((0, 0, latents.width, latents.height))


def open_latents(path: str | PathLike[str]) -> Latents:
    """The latents that `Latents.save` wrote. Raises PictureError for any other file."""
    if not Path(path).is_file():
        raise PictureError(f"{path}: there is no such file")
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise PictureError(f"{path}: holds no latents of ours; make them with `gradina encode`")
            z = file.get_tensor("latents")
            size = int(about["width"]), int(about["height"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, PictureError):
            raise
        raise PictureError(f"{path}: not a file of latents, or cut short; make it with `gradina encode`") from error
    if z.ndim != 3 or not z.is_floating_point() or not torch.isfinite(z).all() or min(size) < 1:
        raise PictureError(f"{path}: holds damaged latents; make them again with `gradina encode`")
    return Latents(z, *size, about.get("model", ""), about.get("hash", ""), about.get("vae", ""))


@dataclass(frozen=True)
class Compression:
    """How much smaller latents are than pixels, and what that costs."""

    ratio: float  # values in the pixels over values in the latents
    psnr: float  # dB, of the decoded picture


def measure(model: StableDiffusion, picture: Image.Image, latents: Latents) -> Compression:
    """The compression of a picture, with its latents rounded to half precision as in a file."""
    back = decode(model, Latents(latents.z.half(), latents.width, latents.height))
    a, b = (to_pixels(p) / 2 + 0.5 for p in (picture, back))
    return Compression(a.numel() / latents.z.numel(), psnr(a, b))
