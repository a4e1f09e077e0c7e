"""Notes on fields of a request that have no effect on the picture, so that nothing is ignored silently."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from gradina.images.programs.settings import NETWORK_TAG, WEIGHTS_NOTE, embedding_notes
from gradina.request import Request

DEFAULT_REQUEST = Request()

if TYPE_CHECKING:
    from PIL import Image

_WEIGHTED = re.compile(
    r"(?<!\\)[(\[](?=[^:()\[\]\n]*[^\W\d_])[^()\[\]\n]+:\s*[+-]?(?:\d+(?:\.\d+)?|\.\d+)\s*(?<!\\)[)\]]|\(\(|\)\)"
)

UNGUIDED = (0, 1)  # guidance scales without guidance


def notes(
    request: Request, sigmas: list[float], options: tuple[str, ...], unread: Iterable[tuple[str, str]]
) -> Iterator[str]:
    """On all fields of a resolved request but its mask, by its sigmas, its sampler's options, and its unread concepts.

    Those are textual inversions, as words with their files, that no prompt contains.
    """
    yield from prompt_notes(request)
    yield from guidance_notes(request, sigmas[:-1])
    for name in ("eta", "rates"):
        if getattr(request, name) is not None and name not in options:
            yield f"{name}: has no effect, as the sampler {request.sampler} takes none; leave it out"
    yield from start_notes(request, len(sigmas))
    for word, file in unread:
        yield f"concepts: {file} has no effect, as no prompt holds its word, {word}; write it in one"


def prompt_notes(request: Request) -> Iterator[str]:
    """On the syntax of other programs in the prompts."""
    text = "\n".join((*dict.fromkeys(request.prompts), request.negative_prompt))
    if tags := list(dict.fromkeys(match[0] for match in NETWORK_TAG.finditer(text))):
        yield (
            f"prompt: {', '.join(tags)} is read as plain words; give a LoRA's file by --lora FILE:SCALE (in "
            "Python: loras=[(file, scale)])"
        )
    yield from embedding_notes(text)
    if _WEIGHTED.search(text):
        yield WEIGHTS_NOTE


def guidance_notes(request: Request, sigmas: list[float]) -> Iterator[str]:
    """On guidance, for a resolved request and the decreasing sigmas of its run, without the last."""
    scale = request.guidance_scale
    if scale == 0:
        yield (
            "guidance_scale: 0 draws the prompt alone, without guidance, as 1 does and as the cards of few-step models "
            "mean it; for a picture without the prompt, give an empty prompt"
        )
    unguided = f"at guidance_scale {scale:g}" if scale in UNGUIDED else ""
    if request.guidance_interval is not None and not unguided:
        low, high = request.guidance_interval
        between = [(a * b) ** 0.5 for a, b in pairwise(sigmas)]  # at which samplers of second order call the network
        if not any(low <= sigma <= high for sigma in (*sigmas, *between)):
            levels = f"{sigmas[0]:.4g} to {sigmas[-1]:.4g}" if sigmas else "there are none"
            yield (
                f"guidance_interval: none of this run's noise levels ({levels}) lies in {low:g} to {high:g}, "
                "so nothing is guided; give an interval that holds some of them"
            )
            unguided = "as nothing is guided"
    given = {
        "negative_prompt": bool(request.negative_prompt.strip()),
        "guidance_rescale": request.guidance_rescale > 0,
        "guidance_interval": request.guidance_interval is not None and scale in UNGUIDED,
    }
    for name, is_given in given.items():
        if is_given and unguided:
            yield f"{name}: has no effect {unguided}; give a guidance_scale above 1 (7.5, say), or leave it out"


def start_notes(request: Request, levels: int) -> Iterator[str]:
    """On the init image, for a resolved request whose run has so many noise levels, the last included."""
    if request.init_image is None:
        if request.strength != DEFAULT_REQUEST.strength:
            yield f"strength: {request.strength:g} has no effect without an init_image; give one, or leave it out"
    elif levels < 2:
        yield (
            f"strength: {request.strength:g} of {request.steps} steps is less than one, so nothing is drawn, and the "
            "picture comes back as the autoencoder gives it; give a higher strength, or more steps"
        )


def mask_notes(
    request: Request, grey: Image.Image, mask: Image.Image, holes: bool, drawn: bool, factor: int
) -> Iterator[str]:
    """On a mask at the size of the picture, in grey and in black and white.

    `holes` says whether it is a picture with holes, `drawn` whether it lets any latents be drawn, and `factor` is the
    side of one in pixels.
    """
    darkest, brightest = mask.getextrema()
    if holes:
        yield (
            "mask_image: is a picture with transparent areas, which are kept, and what is bright in it is drawn anew; "
            "to draw in its holes, give a mask in which they are white and all else is black"
        )
    if not drawn:
        if brightest:
            why = f"its white is narrower than the {factor} x {factor} pixels of a latent; paint it wider"
        elif peak := int(grey.getextrema()[1]):  # type: ignore[arg-type]
            why = f"it has no white (brightest: {peak} of 255, and white begins at 128); scale it to 0..255"
        else:
            why = "it is black or transparent all over, and white marks what is drawn anew; invert it, perhaps"
        yield f"mask_image: nothing is drawn anew, and the picture comes back as it was: {why}"
    elif darkest and request.strength == 1:
        yield "init_image: has no effect, as the mask is white all over and strength 1 keeps nothing; leave both out"
