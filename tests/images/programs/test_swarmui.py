"""SwarmUI in a JPEG, and the hash of its model."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from gradina.images.metadata import read_picture

from .conftest import FILES, KITE, SWARM, record_of


def test_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + json.dumps(SWARM, ensure_ascii=False).encode("utf-16-le")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").request.prompt == KITE["prompt"]


def test_model_hash(tmp_path: Path) -> None:
    assert record_of(tmp_path, FILES["swarmui"]).model == {"name": "sd-1.5", "hash": "0x2"}
