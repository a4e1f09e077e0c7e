"""Texts in the lowest bits of the alpha channel, column by column, as NovelAI hides them."""

from __future__ import annotations

import json
import os
import zlib
from os import PathLike

from PIL import Image

from gradina.errors import PictureError
from gradina.images.open import DECODE_ERRORS, MAX_SOURCE_PIXELS, open_image
from gradina.images.text_chunks import TEXT_BYTES, plain

MAGIC = {b"stealth_pngcomp": True, b"stealth_pnginfo": False}  # whether the text is packed (gzip)
HEAD = 8 * (len(b"stealth_pngcomp") + 4)  # bits of the magic and of the length in bits


def hidden(path: str | PathLike[str], what: str = "picture") -> dict[str, str]:
    """What a picture with transparency hides, as `texts` would give it; its pixels are decoded.

    Raises PictureError where a text is announced and damaged.
    """
    try:
        with open_image(path, what, MAX_SOURCE_PIXELS) as image:
            if image.mode != "RGBA" or image.format not in ("PNG", "WEBP"):
                return {}
            alpha = image.getchannel("A").transpose(Image.Transpose.TRANSPOSE).tobytes()
    except DECODE_ERRORS:  # also in our own words: nothing is hidden in what cannot be opened
        return {}
    head = _bytes(alpha[:HEAD])
    if head[:15] not in MAGIC:
        return {}
    length = int.from_bytes(head[15:])
    data = _bytes(alpha[HEAD : HEAD + length])
    try:
        unpacked = zlib.decompressobj(31).decompress(data, TEXT_BYTES) if MAGIC[head[:15]] else data
    except zlib.error:
        unpacked = b""
    if not unpacked or length > len(alpha) - HEAD:
        raise PictureError(f"{what}: {os.fspath(path)} hides a damaged text in its alpha channel; give another copy")
    return _named(plain(unpacked))


def _bytes(pixels: bytes) -> bytes:
    """Eight lowest bits each make a byte, the highest first."""
    whole = pixels[: len(pixels) // 8 * 8]
    bits = whole.translate(bytes(48 + (value & 1) for value in range(256)))  # "0" or "1"
    return int(bits, 2).to_bytes(len(whole) // 8) if whole else b""


def _named(text: str) -> dict[str, str]:
    """NovelAI hides all its chunks as one JSON object; a plain text is A1111's."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or "Comment" not in data:
        return {"parameters": text}
    return {str(key): value if isinstance(value, str) else json.dumps(value) for key, value in data.items()}
