"""IDX files and batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradina.foundations.data import batches, read_idx
from gradina.foundations.random import Random


def test_batches_contain_every_item_once() -> None:
    found = list(batches(list(range(10)), 4, Random(0)))
    assert [len(batch) for batch in found] == [4, 4, 2]
    assert sorted(x for batch in found for x in batch) == list(range(10))
    assert found != list(batches(list(range(10)), 4, Random(1)))
    with pytest.raises(ValueError, match="size: got 0"):
        list(batches([1], 0, Random(0)))


def test_idx_files_are_read_and_damaged_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "a-idx"
    path.write_bytes(b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (2, 2, 3)) + bytes(range(12)))
    assert read_idx(path) == ((2, 2, 3), bytes(range(12)))
    assert read_idx(path, 1) == ((1, 2, 3), bytes(range(6)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="11 bytes of data where the header says 2x2x3"):
        read_idx(path)
    path.write_bytes(b"PNG")
    with pytest.raises(ValueError, match="not an IDX file of unsigned bytes"):
        read_idx(path)
