"""Captions in sentences, from a captioning model of the transformers library, which is an extra."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch
from PIL import Image

from gradina.errors import HubError, MissingExtra

BLIP = "Salesforce/blip-image-captioning-base"  # the default; 1 GB
LONGEST = 40  # tokens

Captioner = Callable[[Image.Image], str]


def captioner(name: str = BLIP, device: str | torch.device = "cpu") -> Captioner:
    """An image-to-text model by its name on the hub or a folder. Raises MissingExtra without transformers, HubError."""
    if not find_spec("transformers"):
        raise MissingExtra("captioning models are an extra; install it with: pip install 'gradina[caption]'")
    library = import_module("transformers")
    try:
        model = library.AutoModelForImageTextToText.from_pretrained(name).to(device).eval()
        images = library.AutoImageProcessor.from_pretrained(name)
        tokens = library.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise HubError(f"{name}: cannot be used for captions ({reason}); give another name, or a folder") from error

    @torch.no_grad()
    def caption(image: Image.Image) -> str:
        pixels = images(images=image.convert("RGB"), return_tensors="pt")["pixel_values"].to(device)
        written = model.generate(pixel_values=pixels, max_new_tokens=LONGEST)
        return " ".join(str(tokens.decode(written[0], skip_special_tokens=True)).split())

    return caption
