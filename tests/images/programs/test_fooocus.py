"""Fooocus in a JPEG."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from gradina.images.metadata import read_picture

from .conftest import FOOOCUS, KITE


def test_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x9286], exif[0x0131], exif[0x927C] = json.dumps(FOOOCUS), "Fooocus v2.5.0", "fooocus"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").request.prompt == KITE["prompt"]
