"""Easy Diffusion in a JPEG."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from gradina.images.metadata import read_picture

from .conftest import EASY, KITE


def test_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + json.dumps(EASY).encode("utf-16-be")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg", exif=exif)
    record = read_picture(tmp_path / "a.jpg")
    assert (record.source, record.request.seed, record.request.prompt) == ("easydiffusion", 77, KITE["prompt"])
