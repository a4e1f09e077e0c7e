"""Texts in every format and encoding that programs write."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gradina.images.text_chunks import decode_comment, decode_text, read_texts

LINE = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 77, Size: 512x768"
KITE = f"山の上の赤い凧, café 🐈\nNegative prompt: 低品質\n{LINE}"
MARKED = ((b"\xef\xbb\xbf", "utf-8"), (b"\xfe\xff", "utf-16-be"), (b"\xff\xfe", "utf-16-le"))


def exif(data: bytes, tag: int = 0x9286, inside: bool = True, order: str = "<") -> bytes:
    """An Exif block of one undefined value, in the Exif directory or in the first one, in either byte order."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    link = struct.pack(f"{order}HHHIII", 1, 0x8769, 4, 1, 26, 0) if inside else b""
    entry = struct.pack(f"{order}HHHIII", 1, tag, 7, len(data), 26 + len(link), 0)
    return head + link + entry + data


def file_of(path: Path, block: bytes) -> Path:
    """A picture with that Exif block."""
    image = Image.new("RGB", (8, 8), "red")
    if path.suffix == ".png":  # Pillow would write the block again in its own way
        file = io.BytesIO()
        image.save(file, "PNG")
        body = b"eXIf" + block
        chunk = struct.pack(">I", len(block)) + body + struct.pack(">I", zlib.crc32(body))
        path.write_bytes(file.getvalue()[:33] + chunk + file.getvalue()[33:])
    else:
        image.save(path, exif=b"Exif\0\0" + block)
    return path


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".avif"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("inside", [True, False])
def test_comment_in_either_directory(tmp_path: Path, suffix: str, order: str, inside: bool) -> None:
    data = b"UNICODE\0" + KITE.encode("utf-16-be")
    path = file_of(tmp_path / f"a{suffix}", exif(data, inside=inside, order=order))
    assert read_texts(path) == {"UserComment": KITE}


@pytest.mark.parametrize("code", [b"UNICODE\0", b"Unicode\0", b"ASCII\0\0\0", b"JIS\0\0\0\0\0", bytes(8), b""])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-be", "utf-16-le"])
@pytest.mark.parametrize("text", [KITE, KITE.replace("\n", "\r\n"), LINE, f"a red kite\n{LINE}", "a red kite, café"])
def test_comment_in_each_encoding(code: bytes, encoding: str, text: str) -> None:
    assert decode_comment(code + text.encode(encoding)) == text
    assert decode_comment(code + text.encode(encoding) + bytes(2)) == text


@pytest.mark.parametrize("code", [b"UNICODE\0", b"ASCII\0\0\0", bytes(8), b""])
@pytest.mark.parametrize(("mark", "encoding"), MARKED)
@pytest.mark.parametrize("text", [KITE, "凧", "のあ"])
def test_byte_order_mark_decides(code: bytes, mark: bytes, encoding: str, text: str) -> None:
    assert decode_comment(code + mark + text.encode(encoding)) == text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"UNICODE\0" + "のあかいたこ".encode("utf-16-be"), "のあかいたこ"),  # whose bytes are letters of ASCII
        (b"UNICODE\0" + "のあかいたこ".encode("utf-16-le"), "のあかいたこ"),
        (b"UNICODE\0" + "赤い凧が山の上".encode("utf-16-be"), "赤い凧が山の上"),
        (b"UNICODE\0" + "赤い凧が山の上".encode("utf-16-le"), "赤い凧が山の上"),
        (b"UNICODE\0" + "красный змей".encode("utf-16-le"), "красный змей"),
        (b"JIS\0\0\0\0\0" + "赤い凧".encode("iso2022_jp"), "赤い凧"),
        (b"ASCII\0\0\0" + "café, 7°".encode("latin-1"), "café, 7°"),
        (b"ASCII\0\0\0", ""),
        (b"UNICODE\0" + b"a", "a"),
        (b"", ""),
    ],
)
def test_comments_by_value(data: bytes, text: str) -> None:
    assert decode_comment(data) == text


def test_other_tags(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.jpg", exif(KITE.encode(), tag=0x010E, inside=False))
    assert read_texts(path)["ImageDescription"] == KITE
    path = file_of(tmp_path / "a.jpg", exif(KITE.encode("utf-16-le"), tag=0x9C9C, inside=False))
    assert read_texts(path)["XPComment"] == KITE
    block = Image.Exif()
    block[0x0110], block[0x010F] = 'prompt:{"1": "café"}', "workflow:{}"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=block)
    assert read_texts(tmp_path / "a.webp")["Make"] == "workflow:{}"


def test_exif_as_imagemagick_writes_it(tmp_path: Path) -> None:
    block = b"Exif\0\0" + exif(b"UNICODE\0" + KITE.encode("utf-16-be"))
    info = PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n", zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    assert read_texts(tmp_path / "a.png")["UserComment"] == KITE


def test_xmp_of_stable_diffusion_cpp(tmp_path: Path) -> None:
    packet = "<x:xmpmeta><sdcpp:parameters>a &lt;b&gt; &amp;amp; &quot;c&quot;\nSteps: 4</sdcpp:parameters></x:xmpmeta>"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", xmp=packet.encode())
    assert read_texts(tmp_path / "a.webp") == {"parameters": 'a <b> &amp; "c"\nSteps: 4'}


def test_gif_comment(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.gif", comment=KITE.encode())
    assert read_texts(tmp_path / "a.gif")["comment"] == KITE


def test_text_is_utf_8_if_valid() -> None:
    assert decode_text(KITE.encode()) == KITE
    assert decode_text("café, 7°".encode("latin-1")) == "café, 7°"
    assert decode_text(b"\xff\xfe" + KITE.encode("utf-16-le")) == KITE


@given(st.text(st.characters(exclude_categories=["Cc", "Cn", "Co", "Cs"]), max_size=60).map(lambda text: text + LINE))
def test_settings_round_trip_in_any_encoding(text: str) -> None:
    for encoding in ("utf-8", "utf-16-be", "utf-16-le"):
        for code in (b"UNICODE\0", b"ASCII\0\0\0", b""):
            assert decode_comment(code + text.encode(encoding)) == text.removeprefix("\ufeff")


@given(st.binary(max_size=200))
def test_any_comment_is_read(data: bytes) -> None:
    assert isinstance(decode_comment(data), str)
    assert isinstance(decode_text(data), str)


@pytest.mark.parametrize(
    "evil", ["<dc:description>", "<dc:description ", "<dc:description><rdf:", "</dc:description>", "<rdf:li>&amp;"]
)
def test_xmp_time_is_linear(tmp_path: Path, evil: str) -> None:
    text = f"<dc:description>{evil * (500_000 // len(evil))}</dc:description>"
    path, chunks = tmp_path / "a.png", PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)
    start = time.perf_counter()
    read_texts(path)
    assert time.perf_counter() - start < 2
