"""Texts in the lowest bits of the alpha channel, column by column, as NovelAI writes them."""

from __future__ import annotations

import json
import os
import zlib
from os import PathLike

from PIL import Image

from gradina.errors import PictureError
from gradina.images.open import DECODE_ERRORS, MAX_SOURCE_PIXELS, open_image
from gradina.images.text_chunks import MAX_TEXT_BYTES, decode_text

MAGIC = {b"stealth_pngcomp": True, b"stealth_pnginfo": False}  # whether the text is compressed (gzip)
HEAD_BITS = 8 * (len(b"stealth_pngcomp") + 4)  # magic, and length in bits


def read_hidden_texts(path: str | PathLike[str], what: str = "picture") -> dict[str, str]:
    """The texts hidden in a picture with transparency, as `read_texts` returns them; decodes the pixels.

    Raises PictureError for a damaged text.
    """
    try:
        with open_image(path, what, MAX_SOURCE_PIXELS) as image:
            if image.mode != "RGBA" or image.format not in ("PNG", "WEBP"):
                return {}
            alpha = image.getchannel("A").transpose(Image.Transpose.TRANSPOSE).tobytes()
    except DECODE_ERRORS:  # among them PictureError: a file that cannot be opened hides nothing
        return {}
    head = _bytes(alpha[:HEAD_BITS])
    if head[:15] not in MAGIC:
        return {}
    length = int.from_bytes(head[15:])
    data = _bytes(alpha[HEAD_BITS : HEAD_BITS + length])
    try:
        unpacked = zlib.decompressobj(31).decompress(data, MAX_TEXT_BYTES) if MAGIC[head[:15]] else data
    except zlib.error:
        unpacked = b""
    if not unpacked or length > len(alpha) - HEAD_BITS:
        raise PictureError(f"{what}: {os.fspath(path)} hides a damaged text in its alpha channel; give another copy")
    return _by_keyword(decode_text(unpacked))


def _bytes(pixels: bytes) -> bytes:
    """The lowest bits of the pixels as bytes, most significant first."""
    whole = pixels[: len(pixels) // 8 * 8]
    bits = whole.translate(bytes(48 + (value & 1) for value in range(256)))  # "0" or "1"
    return int(bits, 2).to_bytes(len(whole) // 8) if whole else b""


def _by_keyword(text: str) -> dict[str, str]:
    """A JSON object holds the chunks of NovelAI; any other text is A1111's."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or "Comment" not in data:
        return {"parameters": text}
    return {str(key): value if isinstance(value, str) else json.dumps(value) for key, value in data.items()}
