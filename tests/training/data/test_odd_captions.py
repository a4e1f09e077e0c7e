"""Whatever file lies beside pictures: they have captions that are texts, or one line names what is wrong."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradina.errors import RecipeError
from gradina.training.data.captions import captions_told, read_folder


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as shard:
        for name, data in (("b.png", b"x" * 600), ("b.txt", b"a seven"), ("b.json", b'{"caption": "a two"}')):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    return file.getvalue()


NAMES = (
    "a.txt", "a.caption", "a.json", "metadata.jsonl", "metadata.json1", "metadata.json", "metadata.csv", "metadata.tsv",
    "meta_cap.json", "s.tar", "s.tar.gz", "10_x/b.png", "b.heic",
)  # fmt: skip
WHOLE = (
    b"", b"\0", bytes(600), b"null", b"[]", b"[1, [2], {}]", b"[" * 100_000, b'{"a": ' * 99_999,
    b'{"a": {"caption": 3}}',
    b'{"file_name": "a.png", "text": "a seven"}', b'[{"file_name": "a.png", "text": [[]]}]', b'{"file_name": 3}',
    b'{"a.png": {"caption": "a seven", "tags": ["x"]}, "b": 3}', b'{"caption": NaN}', b'{"text": 1e999}',
    b'{"text": ' + b"9" * 5000 + b"}", b"file_name,text\na.png,a seven\n", b'file_name;text\n"a.png;x',
    b"file_name\n\n,,,\n",
    b"file_name,text\n" + b"a" * 200_000 + b",x\n", "caf\u00e9".encode("utf-16"), b"\xff\xfe\0", b"\xef\xbb\xbf", tar(),
    tar()[:1400], b"\x1f\x8b\x08\0", b"<!DOCTYPE html>",
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A file of those above in which some bytes are others, or are gone."""
    data = bytearray(draw(st.sampled_from([data[:4000] for data in WHOLE])))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
    return bytes(data)


def check(folder: Path, name: str, data: bytes) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / "a.png").write_bytes(b"")
    (folder / name).write_bytes(data)
    found, refused = [], ""
    try:
        found = read_folder(folder)
    except RecipeError as error:
        refused = str(error)
    assert bool(found) == (not refused)
    if refused:
        assert str(folder) in refused
        assert len(refused) < 2000
    else:
        assert all(one.caption.encode() for one in found)
        assert all(isinstance(one.data(), bytes) for one in found)
        assert captions_told(found).startswith("captions: from ")


@pytest.mark.parametrize("name", NAMES)
def test_odd_files(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    for number, data in enumerate(WHOLE):
        check(tmp_path / str(number), name, data)


@given(damaged() | st.binary(max_size=40), st.sampled_from(NAMES), st.uuids())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_damaged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, name: str, number: object) -> None:
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    shutil.rmtree(tmp_path / str(number), ignore_errors=True)  # where the same is tried again
    check(tmp_path / str(number), name, data)
