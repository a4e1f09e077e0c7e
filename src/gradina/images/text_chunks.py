"""The texts of a picture's file, by the names of their places: PNG chunks, Exif, XMP, comments; their bytes decoded.

What writers do differs from what the formats say, so that of several encodings the one is taken that makes sense.
"""

from __future__ import annotations

import html
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
from gradina.images.open import DECODE_ERRORS, check_file, open_image

TEXT_BYTES = 64 * 2**20  # of text that is read from one file
CHUNKS = 1_000_000
LOOKED_AT = 4096  # letters, to tell an encoding by
MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xfe\xff", "utf-16-be"), (b"\xff\xfe", "utf-16-le"))
CODES = (b"UNICODE\0", b"ASCII\0\0\0", b"JIS\0\0\0\0\0", bytes(8))  # before the text of a UserComment

XMP = {  # elements, and what we call them: as the same in Exif
    "sdcpp:parameters": "parameters", "exif:UserComment": "UserComment", "dc:description": "ImageDescription",
}  # fmt: skip


def texts(path: str | PathLike[str], what: str = "picture") -> dict[str, str]:
    """The texts that a picture file carries, without decoding its pixels: PNG chunks by keyword, Exif by tag name.

    Raises PictureError for what is no picture, and where the texts are larger than 64 MiB.
    """
    with open(check_file(path, what), "rb") as file:
        if file.read(8) == b"\x89PNG\r\n\x1a\n":
            return _png(file, f"{what}: {os.fspath(path)}")
    with open_image(path, what) as image:
        try:
            found = _exif(image.getexif())
        except DECODE_ERRORS:  # such Exif carries nothing
            found = {}
        comment, xmp = (image.info.get(key, b"") for key in ("comment", "xmp"))
    if isinstance(xmp, bytes):
        found = _xmp(plain(xmp)) | found
    return found | ({"comment": plain(comment)} if comment and isinstance(comment, bytes) else {})


def _png(file: BinaryIO, name: str) -> dict[str, str]:
    """Walks from chunk to chunk; texts behind the pixels, which Pillow sees only after decoding, are found too."""
    found: dict[str, str] = {}
    exif: dict[str, str] = {}
    room = TEXT_BYTES
    for _ in range(CHUNKS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            break
        length, kind = struct.unpack(">I4s", head)
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"eXIf"):
            file.seek(length + 4, os.SEEK_CUR)
            continue
        data, used = file.read(min(length, room + 1)), length
        try:
            if kind == b"eXIf":
                exif = _exif_bytes(data)
            else:
                key, text = _chunk(kind, data, room)
                found.setdefault(key, plain(text))
                used = max(length, len(text))
        except (ValueError, zlib.error):
            pass  # a damaged chunk carries nothing
        room -= used
        if room < 0:
            raise PictureError(f"{name} carries more than {TEXT_BYTES >> 20} MiB of text; it is not read")
        file.seek(4, os.SEEK_CUR)
    if profile := found.get("Raw profile type exif") or found.get("Raw profile type APP1"):
        exif |= _exif_bytes(_profile(profile))
    return _xmp(found.get("XML:com.adobe.xmp", "")) | exif | found


def _profile(text: str) -> bytes:
    """Exif as ImageMagick writes it into a text: its name, its length, its bytes in hexadecimal."""
    try:
        return bytes.fromhex("".join(text.split()[2:]))
    except ValueError:
        return b""


def _chunk(kind: bytes, data: bytes, room: int) -> tuple[str, bytes]:
    """Keyword and text of a tEXt, zTXt or iTXt chunk; of a compressed one no more than `room` + 1 bytes."""
    key, text = data.split(b"\0", 1)
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        packed = text[0:1] == b"\1"
        _language, _translated, text = text[2:].split(b"\0", 2)
    elif packed:
        text = text[1:]  # the method, of which there is one
    return key.decode("latin-1"), zlib.decompressobj().decompress(text, room + 1) if packed else text


def _xmp(packet: str) -> dict[str, str]:
    """The texts in XMP: what stable-diffusion.cpp and Draw Things write there, and editors that know no Exif."""
    found: dict[str, str] = {}
    for name, ours in XMP.items():
        begin = re.search(rf"<{name}\b[^<>]*>", packet)
        end = packet.find(f"</{name}>", begin.end()) if begin else -1
        if begin and end >= 0:
            inside = re.sub(r"</?rdf:[^<>]*>", "", packet[begin.end() : end])
            found[ours] = html.unescape(inside).strip()
    return found


def _exif_bytes(data: bytes) -> dict[str, str]:
    exif = Image.Exif()
    try:
        exif.load(data)
        return _exif(exif)
    except DECODE_ERRORS:
        return {}


def _exif(exif: Image.Exif) -> dict[str, str]:
    """The texts of the Exif directory, then of the first one, where some writers put them all."""
    try:
        inner: Mapping[int, Any] = exif.get_ifd(ExifTags.IFD.Exif)
    except DECODE_ERRORS:
        inner = {}
    found: dict[str, str] = {}
    for tag, value in [*inner.items(), *exif.items()]:
        name = ExifTags.TAGS.get(tag, str(tag))
        data = value.encode("latin-1", "replace") if isinstance(value, str) else value  # Pillow reads it as Latin-1
        if isinstance(data, bytes) and data:
            text = comment(data) if name == "UserComment" else _wide(data) if name.startswith("XP") else plain(data)
            found.setdefault(name, text)
    return found


def plain(data: bytes) -> str:
    """A text of PNG or Exif: UTF-8 where it is valid UTF-8, else Latin-1, as PNG has it; UTF-16 if it is marked so."""
    if data.startswith(tuple(mark for mark, _ in MARKS)):
        return _marked(data)
    try:
        return data.decode("utf-8").strip("\0")
    except UnicodeDecodeError:
        return data.decode("latin-1").strip("\0")


def comment(data: bytes) -> str:
    """Exif's UserComment: eight bytes that name the encoding, then the text, in whatever encoding makes sense."""
    code = data[:8].upper()
    body = data[8:] if code in CODES else data
    if body.startswith(tuple(mark for mark, _ in MARKS)):
        return _marked(body)
    if code.startswith(b"JIS") and b"\x1b" in body:
        return body.decode("iso2022_jp", "replace").strip("\0")
    return _wide(body, first="utf-16-be") if code.startswith(b"UNICODE") else _wide(body, first="utf-8")


def _marked(data: bytes) -> str:
    mark, encoding = next(row for row in MARKS if data.startswith(row[0]))
    return data[len(mark) :].decode(encoding, "replace").strip("\0")


def _wide(data: bytes, first: str = "utf-16-le") -> str:
    """A text in UTF-16 of either byte order or in UTF-8, of which `first` is expected; if it is neither, Latin-1."""
    if first != "utf-8" and len(data) >= 4 and 0 not in data:  # one script such as kana, whose bytes are letters, too
        for at, encoding in ((0, "utf-16-be"), (1, "utf-16-le")):
            if len(set(data[at::2])) <= 2 and (text := _decoded(data, encoding)):
                return text
    order = sorted(("utf-16-be", "utf-16-le", "utf-8"), key=lambda encoding: encoding != first)
    order += ["latin-1"] if first == "utf-8" and not _decoded(data, "utf-8") else []
    read = [text for encoding in order if (text := _decoded(data, encoding))]
    best = min(read, key=_odd, default="")
    return best if best and _odd(best)[0] <= 0 else plain(data)


def _decoded(data: bytes, encoding: str) -> str:
    """The text without the zeros at its end; empty if it is none in this encoding."""
    whole = data[: len(data) // 2 * 2] if encoding.startswith("utf-16") else data
    try:
        return whole.decode(encoding).strip("\0")
    except UnicodeDecodeError:
        return ""


def _odd(text: str) -> tuple[int, int]:
    """How unlikely a text is: characters that nobody writes count against it, those of ASCII for it; then scripts."""
    score = 0
    for letter in text[:LOOKED_AT]:
        if letter in "\t\n\r" or " " <= letter <= "~":
            score -= 1
        elif unicodedata.category(letter) in ("Cc", "Cn", "Co", "Cs"):
            score += 4
    return score, len({ord(letter) >> 8 for letter in text[:LOOKED_AT]})
