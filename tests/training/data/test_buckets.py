"""Buckets: sizes of about the same area, the nearest one, and crops from side to side."""

from __future__ import annotations

from PIL import Image

from gradina.training.data.latents import bucket_sizes, crop_at, nearest_bucket, resize_to_cover


def test_bucket_sizes() -> None:
    found = bucket_sizes(512 * 512, 64)
    assert found[0] == (512, 512)
    assert (384, 640) in found
    assert (640, 384) in found
    assert all(w % 64 == h % 64 == 0 and w * h <= 512 * 512 and max(w / h, h / w) <= 2 for w, h in found)
    assert bucket_sizes(128 * 128, 32, square=True) == [(128, 128)]
    assert nearest_bucket((1000, 1000), found) == (512, 512)
    assert nearest_bucket((600, 1000), found) == (384, 640)
    assert nearest_bucket((5000, 100), found)[0] > 512


def test_crop_at_each_side() -> None:
    image = Image.new("RGB", (200, 100))
    image.paste("white", (100, 0, 200, 100))
    left, middle, right = (crop_at(image, (50, 50), across) for across in (0.0, 0.5, 1.0))
    assert left.size == (50, 50)
    dark, both, light = (one.getextrema()[0] for one in (left, middle, right))
    assert dark[1] < 20
    assert light[0] > 235
    assert both[0] < 20 < 235 < both[1]


def test_resize_to_cover_is_idempotent() -> None:
    image = Image.effect_noise((301, 173), 90)
    whole = resize_to_cover(image, (64, 48))
    assert whole.size == (84, 48)
    assert resize_to_cover(whole, (64, 48)).tobytes() == whole.tobytes()
    assert crop_at(image, (64, 48), 0.3, 0.9).tobytes() == crop_at(whole, (64, 48), 0.3, 0.9).tobytes()
