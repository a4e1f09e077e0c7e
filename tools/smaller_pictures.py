"""Shrinks the plots of executed lessons: quantizes all PNG files in a folder to 256 colours.

python tools/smaller_pictures.py docs/lessons
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from gradina.files import atomic_write

for path in sorted(Path(sys.argv[1]).rglob("*.png")):
    with Image.open(path) as picture:
        if picture.mode == "P":
            continue
        smaller = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    with atomic_write(path) as file:
        smaller.save(file, "PNG", optimize=True)
