"""The texts in a picture's file, decoded, by keyword or tag: PNG chunks, Exif, XMP, comments, low bits of pixels.

Many writers ignore the encoding that a format prescribes, so the most plausible of several encodings is taken.
"""

from __future__ import annotations

import html
import json
import os
import re
import struct
import unicodedata
import zlib
from collections.abc import Mapping
from os import PathLike
from typing import Any, BinaryIO

from PIL import ExifTags, Image

from gradina.errors import PictureError
from gradina.images.open import DECODE_ERRORS, MAX_SOURCE_PIXELS, check_file, open_image
from gradina.texts import json_or_none

MAX_TEXT_BYTES = 64 * 2**20  # of one file
MAX_CHUNKS = 1_000_000
SAMPLE_LETTERS = 4096  # by which an encoding is judged
MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xfe\xff", "utf-16-be"), (b"\xff\xfe", "utf-16-le"))
COMMENT_CODES = (b"UNICODE\0", b"ASCII\0\0\0", b"JIS\0\0\0\0\0", bytes(8))  # at the start of a UserComment

XMP = {  # elements, by the names of the same in Exif
    "sdcpp:parameters": "parameters", "exif:UserComment": "UserComment", "dc:description": "ImageDescription",
}  # fmt: skip

MAGIC = {b"stealth_pngcomp": True, b"stealth_pnginfo": False}  # whether the text is compressed (gzip)
HEAD_BITS = 8 * (len(b"stealth_pngcomp") + 4)  # magic, and length in bits


def read_texts(path: str | PathLike[str], what: str = "picture") -> dict[str, str]:
    """The texts in a picture file, without decoding its pixels: PNG chunks by keyword, Exif by tag name.

    Raises PictureError for a file that is no picture, or has more than 64 MiB of text.
    """
    with open(check_file(path, what), "rb") as file:
        if file.read(8) == b"\x89PNG\r\n\x1a\n":
            return _png(file, f"{what}: {os.fspath(path)}")
    with open_image(path, what) as image:
        try:
            found = _exif(image.getexif())
        except DECODE_ERRORS:  # damaged Exif
            found = {}
        comment, xmp = (image.info.get(key, b"") for key in ("comment", "xmp"))
    if isinstance(xmp, bytes):
        found = _xmp(decode_text(xmp)) | found
    return found | ({"comment": decode_text(comment)} if comment and isinstance(comment, bytes) else {})


def _png(file: BinaryIO, name: str) -> dict[str, str]:
    """The texts of all chunks, also of those after the pixels, which Pillow reads only on decoding."""
    found: dict[str, str] = {}
    exif: dict[str, str] = {}
    remaining = MAX_TEXT_BYTES
    for _ in range(MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            break
        length, kind = struct.unpack(">I4s", head)
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"eXIf"):
            file.seek(length + 4, os.SEEK_CUR)
            continue
        data, used = file.read(min(length, remaining + 1)), length
        try:
            if kind == b"eXIf":
                exif = _exif_bytes(data)
            else:
                key, text = _chunk(kind, data, remaining)
                found.setdefault(key, decode_text(text))
                used = max(length, len(text))
        except (ValueError, zlib.error):
            pass  # a damaged chunk
        remaining -= used
        if remaining < 0:
            raise PictureError(f"{name} carries more than {MAX_TEXT_BYTES >> 20} MiB of text; it is not read")
        file.seek(4, os.SEEK_CUR)
    if profile := found.get("Raw profile type exif") or found.get("Raw profile type APP1"):
        exif |= _exif_bytes(_profile(profile))
    return _xmp(found.get("XML:com.adobe.xmp", "")) | exif | found


def _profile(text: str) -> bytes:
    """Exif as ImageMagick writes it in a text: name, length, hexadecimal bytes."""
    try:
        return bytes.fromhex("".join(text.split()[2:]))
    except ValueError:
        return b""


def _chunk(kind: bytes, data: bytes, limit: int) -> tuple[str, bytes]:
    """Keyword and text of a tEXt, zTXt or iTXt chunk; of a compressed one at most `limit` + 1 bytes."""
    key, text = data.split(b"\0", 1)
    compressed = kind == b"zTXt"
    if kind == b"iTXt":
        compressed = text[0:1] == b"\1"
        _language, _translated, text = text[2:].split(b"\0", 2)
    elif compressed:
        text = text[1:]  # without the compression method, of which there is one
    return key.decode("latin-1"), zlib.decompressobj().decompress(text, limit + 1) if compressed else text


def _xmp(packet: str) -> dict[str, str]:
    """The texts in XMP, as stable-diffusion.cpp, Draw Things and editors without Exif write them."""
    found: dict[str, str] = {}
    for name, tag in XMP.items():
        begin = re.search(rf"<{name}\b[^<>]*>", packet)
        end = packet.find(f"</{name}>", begin.end()) if begin else -1
        if begin and end >= 0:
            inside = re.sub(r"</?rdf:[^<>]*>", "", packet[begin.end() : end])
            found[tag] = html.unescape(inside).strip()
    return found


def _exif_bytes(data: bytes) -> dict[str, str]:
    exif = Image.Exif()
    try:
        exif.load(data)
        return _exif(exif)
    except DECODE_ERRORS:
        return {}


def _exif(exif: Image.Exif) -> dict[str, str]:
    """The texts of the Exif directory, then of the first directory, where some writers put them."""
    try:
        inner: Mapping[int, Any] = exif.get_ifd(ExifTags.IFD.Exif)
    except DECODE_ERRORS:
        inner = {}
    found: dict[str, str] = {}
    for tag, value in [*inner.items(), *exif.items()]:
        name = ExifTags.TAGS.get(tag, str(tag))
        data = value.encode("latin-1", "replace") if isinstance(value, str) else value  # Pillow reads it as Latin-1
        if isinstance(data, bytes) and data:
            decode = decode_comment if name == "UserComment" else _utf16 if name.startswith("XP") else decode_text
            found.setdefault(name, decode(data))
    return found


def read_hidden_texts(path: str | PathLike[str], what: str = "picture") -> dict[str, str]:
    """The texts in the lowest bits of the alpha channel, column by column, as NovelAI writes them; decodes the pixels.

    Raises PictureError for a damaged text.
    """
    try:
        with open_image(path, what, MAX_SOURCE_PIXELS) as image:
            if image.mode != "RGBA" or image.format not in ("PNG", "WEBP"):
                return {}
            alpha = image.getchannel("A").transpose(Image.Transpose.TRANSPOSE).tobytes()
    except DECODE_ERRORS:  # among them PictureError: a file that cannot be opened hides nothing
        return {}
    head = _low_bits(alpha[:HEAD_BITS])
    if head[:15] not in MAGIC:
        return {}
    length = int.from_bytes(head[15:])
    data = _low_bits(alpha[HEAD_BITS : HEAD_BITS + length])
    try:
        unpacked = zlib.decompressobj(31).decompress(data, MAX_TEXT_BYTES) if MAGIC[head[:15]] else data
    except zlib.error:
        unpacked = b""
    if not unpacked or length > len(alpha) - HEAD_BITS:
        raise PictureError(f"{what}: {os.fspath(path)} hides a damaged text in its alpha channel; give another copy")
    text = decode_text(unpacked)
    chunks = json_or_none(text)
    if not isinstance(chunks, dict) or "Comment" not in chunks:
        return {"parameters": text}  # of A1111
    return {str(key): value if isinstance(value, str) else json.dumps(value) for key, value in chunks.items()}


def _low_bits(pixels: bytes) -> bytes:
    """The lowest bits of the pixels as bytes, most significant first."""
    whole = pixels[: len(pixels) // 8 * 8]
    bits = whole.translate(bytes(48 + (value & 1) for value in range(256)))  # "0" or "1"
    return int(bits, 2).to_bytes(len(whole) // 8) if whole else b""


def decode_text(data: bytes) -> str:
    """A text of PNG or Exif: UTF-16 with a byte-order mark, else UTF-8 if valid, else Latin-1, the encoding of PNG."""
    if data.startswith(tuple(mark for mark, _ in MARKS)):
        return _marked(data)
    try:
        return data.decode("utf-8").strip("\0")
    except UnicodeDecodeError:
        return data.decode("latin-1").strip("\0")


def decode_comment(data: bytes) -> str:
    """Exif's UserComment: eight bytes that name the encoding, then the text, in the most plausible encoding."""
    code = data[:8].upper()
    body = data[8:] if code in COMMENT_CODES else data
    if body.startswith(tuple(mark for mark, _ in MARKS)):
        return _marked(body)
    if code.startswith(b"JIS") and b"\x1b" in body:
        return body.decode("iso2022_jp", "replace").strip("\0")
    return _utf16(body, "utf-16-be" if code.startswith(b"UNICODE") else "utf-8")


def _marked(data: bytes) -> str:
    mark, encoding = next(row for row in MARKS if data.startswith(row[0]))
    return data[len(mark) :].decode(encoding, "replace").strip("\0")


def _utf16(data: bytes, expected: str = "utf-16-le") -> str:
    """A text in UTF-16 of either byte order or in UTF-8, of which one is expected; else as `decode_text`."""
    if expected != "utf-8" and len(data) >= 4 and 0 not in data:  # a script such as kana, whose bytes are letters, too
        for at, encoding in ((0, "utf-16-be"), (1, "utf-16-le")):
            if len(set(data[at::2])) <= 2 and (text := _decoded(data, encoding)):
                return text
    order = sorted(("utf-16-be", "utf-16-le", "utf-8"), key=lambda encoding: encoding != expected)
    order += ["latin-1"] if expected == "utf-8" and not _decoded(data, "utf-8") else []
    texts = [text for encoding in order if (text := _decoded(data, encoding))]
    best = min(texts, key=_implausibility, default="")
    return best if best and _implausibility(best)[0] <= 0 else decode_text(data)


def _decoded(data: bytes, encoding: str) -> str:
    """The text without zeros at its ends; "" where it is invalid in this encoding."""
    whole = data[: len(data) // 2 * 2] if encoding.startswith("utf-16") else data
    try:
        return whole.decode(encoding).strip("\0")
    except UnicodeDecodeError:
        return ""


def _implausibility(text: str) -> tuple[int, int]:
    """How implausible a text is: control and unassigned characters against ASCII ones, then the number of scripts."""
    score = 0
    for letter in text[:SAMPLE_LETTERS]:
        if letter in "\t\n\r" or " " <= letter <= "~":
            score -= 1
        elif unicodedata.category(letter) in ("Cc", "Cn", "Co", "Cs"):
            score += 4
    return score, len({ord(letter) >> 8 for letter in text[:SAMPLE_LETTERS]})
