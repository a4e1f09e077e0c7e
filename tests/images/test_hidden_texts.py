"""Texts hidden in the alpha channel are read, and damaged ones refused."""

from __future__ import annotations

import gzip
import json
import warnings
from pathlib import Path

import pytest
from PIL import Image
from sd_parsers import Eagerness, ParserManager

from gradina.errors import PictureError
from gradina.images.metadata import read_picture

from .programs.conftest import A1111, KITE, NOVEL_4, NOVEL_CHUNKS


def hide(path: Path, text: str, packed: bool, size: tuple[int, int] = (64, 128)) -> Path:
    """A picture with that text in the lowest bits of its alpha channel, column by column."""
    data = gzip.compress(text.encode()) if packed else text.encode()
    whole = (b"stealth_pngcomp" if packed else b"stealth_pnginfo") + (8 * len(data)).to_bytes(4) + data
    bits = "".join(f"{byte:08b}" for byte in whole)
    image = Image.new("RGBA", size, (255, 0, 0, 254))
    pixels = image.load()
    assert pixels
    for at, bit in enumerate(bits):
        pixels[at // size[1], at % size[1]] = (255, 0, 0, 254 + int(bit))
    image.save(path, lossless=True)
    return path


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("packed", [True, False])
def test_novelai(tmp_path: Path, suffix: str, packed: bool) -> None:
    text = json.dumps({**NOVEL_CHUNKS, "Comment": json.dumps(NOVEL_4 | {"v4_prompt": None})})
    path = hide(tmp_path / f"a{suffix}", text, packed)
    record = read_picture(path)
    assert (record.source, record.request.prompt, record.request.seed) == ("novelai", KITE["prompt"], 77)
    if packed and suffix == ".png":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it calls what Pillow is to lose
            parsed = ParserManager(eagerness=Eagerness.EAGER).parse(path)
        assert parsed
        assert parsed.samplers[0].prompts[0].value == KITE["prompt"]


def test_a1111(tmp_path: Path) -> None:
    assert read_picture(hide(tmp_path / "a.png", A1111, True)).request.prompt == KITE["prompt"]


def test_damaged_text_is_refused(tmp_path: Path) -> None:
    path = hide(tmp_path / "a.png", A1111, True, (16, 128))
    with Image.open(path) as image:
        image.crop((0, 0, 4, 128)).save(path)  # columns are left that announce a longer text
    with pytest.raises(PictureError, match=r"a\.png hides a damaged text in its alpha channel"):
        read_picture(path)
