"""Files that the command line writes: their names, and what happens where there is no room."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gradina import files
from gradina.apps.cli.main import main


def names(room: Path) -> list[str]:
    return sorted(p.name for p in room.iterdir())


def test_names_in_a_folder_are_unused_ones(room: Path, model_folder: str) -> None:
    main(["A red fox!", "--seed", "5", "-m", model_folder, "-o", "made/"])
    main(["A red fox!", "--seed", "5", "-m", model_folder, "-o", "made/"])
    assert names(room / "made") == ["a-red-fox-5-2.png", "a-red-fox-5.png"]


def test_without_an_output_no_file_is_replaced(room: Path, model_folder: str) -> None:
    for _ in range(2):
        main(["seven", "--seed", "5", "-m", model_folder])
    assert names(room) == ["seven-5-2.png", "seven-5.png"]


def test_file_names_are_cut_by_bytes(room: Path, model_folder: str) -> None:
    rest = ["-m", model_folder, "--steps", "1", "--seed", str(2**64 - 1)]
    for _ in range(2):
        assert main(["\U00020000" * 80, *rest, "-o", "made/"]) == 0
    assert main(["\U00020000" * 80, "-m", model_folder, "--grid", "steps=1,2", "-o", "grids/"]) == 0
    for name in [*names(room / "made"), *names(room / "grids")]:
        assert len(os.fsencode(name)) <= 255
        assert name.startswith("\U00020000" * 50)
    long = "é" * 125 + ".png"
    assert main(["x", "y", "-m", model_folder, "--steps", "1", "--seed", "0", "-o", long]) == 0
    first = next(name for name in names(room) if name.endswith("-0.png"))
    (room / first).rename(room / long)
    assert main(["again", long, "-m", model_folder]) == 0
    assert main(["encode", long, "-m", model_folder]) == 0
    assert sum(name.endswith(("-again.png", ".latents")) for name in names(room)) == 2


@pytest.mark.parametrize("output", ["x.png", "x.jpg", "x.webp"])
def test_a_full_disk_leaves_no_file(
    output: str, room: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(output).write_bytes(b"as it was")

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "_sync", full)
    assert main(["x", "-m", model_folder, "--steps", "1", "-o", output]) == 2
    assert (
        capsys.readouterr().err
        == f"gradina: {output}: cannot be written: the disk is full; make room and write it again\n"
    )
    assert names(room) == [output]
    assert Path(output).read_bytes() == b"as it was"
