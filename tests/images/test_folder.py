"""Picture files in folders: which are found, which links are followed, and what is noted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gradina.errors import PictureError
from gradina.images.folder import pictures_in


def test_pictures_in_order(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.txt", ".d.png", "z/e.webp", "m/f.gif", "m/n/g.tif", ".hidden/h.png", "m/i.png/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "gone.png").symlink_to("nowhere")
    found = [str(path.relative_to(tmp_path)) for path in pictures_in(tmp_path)]
    assert found == ["a.jpg", "b.PNG", "m/f.gif", "m/n/g.tif", "z/e.webp"]


def test_system_folders_are_left_out(tmp_path: Path) -> None:
    for name in ("@eaDir/SYNOPHOTO_THUMB.png", "__MACOSX/._a.png", "a/.thumbnails/b.png", "#recycle/c.png", "._d.png",
                 "$RECYCLE.BIN/e.png", "a/@EADIR/f.png", "@me/g.png"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert pictures_in(tmp_path) == [tmp_path / "@me" / "g.png"]


def test_unsupported_formats_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("IMG_1.HEIC", "x/b.nef"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    message = r"2 pictures are in formats that are not read \(.heic, .nef: IMG_1.HEIC, x/b.nef\)"
    with pytest.raises(PictureError, match=message + "; convert them to PNG or JPEG"):
        pictures_in(tmp_path)
    (tmp_path / "c.png").write_text("")
    assert pictures_in(tmp_path) == [tmp_path / "c.png"]
    assert re.search(message + ", and left out; convert them", caplog.text)


def test_links_to_folders_are_followed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("here/x/a.png", "away/b.png", "away/back/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for name, to in (("away", "away"), ("again", "away"), ("up", "."), ("x2", "here/x"), ("loop", "here")):
        (tmp_path / "here" / name).symlink_to(tmp_path / to)
    (tmp_path / "away" / "back" / "loop").symlink_to(tmp_path / "away")
    found = [path.relative_to(tmp_path / "here").as_posix() for path in pictures_in(tmp_path / "here")]
    assert found == ["again/b.png", "again/back/c.png", "x/a.png"]
    assert not caplog.messages


def test_broken_links_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    for i in range(4):
        (tmp_path / f"{i}.png").symlink_to("nowhere")
    assert pictures_in(tmp_path) == [tmp_path / "a.png"]
    message = "4 links to pictures lead to nothing (0.png, 1.png, 2.png, ...), and are left out"
    assert caplog.messages == [f"{tmp_path}: {message}"]


def test_unreadable_folders_are_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def walk(top: Path, onerror: Callable[[OSError], None], **_: object) -> Iterator[tuple[str, list[str], list[str]]]:
        onerror(PermissionError(13, "Permission denied", str(top / "x")))
        yield str(top), [], []

    monkeypatch.setattr("os.walk", walk)
    assert pictures_in(tmp_path) == []
    assert caplog.messages == [f"{tmp_path / 'x'}: cannot be read (Permission denied), and is left out"]
