"""Files are mapped, written whole, and refused with the reason."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gradina.errors import DiskError, WeightsError
from gradina.nn import ops
from gradina.weights.formats.diffusers_layout import find_weights
from gradina.weights.safetensors import MappedFiles, model_hash, open_weights, save_weights, to_dtype

SMALL = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16), "c": torch.tensor(3)}


def anonymous_memory() -> int:
    """Bytes of this process that are not mapped from a file."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


def test_round_trip_of_tensors_and_metadata(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(SMALL, path, {"title": "tiny"})
    weights = open_weights(path)
    assert weights.metadata == {"format": "pt", "title": "tiny"}
    assert weights.tensors.keys() == SMALL.keys()
    assert all(torch.equal(weights.tensors[k], x) and weights.tensors[k].dtype == x.dtype for k, x in SMALL.items())
    assert weights.under("a") == {"": weights.tensors["a"]}


def test_equal_tensors_give_equal_bytes(tmp_path):
    save_weights(SMALL, tmp_path / "1.safetensors")
    save_weights(dict(reversed(SMALL.items())), tmp_path / "2.safetensors")
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured as Linux reports it")
def test_opening_maps_without_copying(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({f"{i}": torch.zeros(4_000_000) for i in range(4)}, path)  # 64 MB
    before = anonymous_memory()
    weights = open_weights(path)
    total = sum(float(x.sum()) for x in weights.tensors.values())
    assert total == 0
    assert anonymous_memory() - before < 8_000_000


def test_changing_a_mapped_tensor_leaves_its_file(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(SMALL, path)
    was = path.read_bytes()
    open_weights(path).tensors["a"].add_(1)
    assert path.read_bytes() == was


def test_index_joins_its_files(tmp_path):
    save_file({"a": SMALL["a"]}, tmp_path / "m-1.safetensors")
    save_file({"b": SMALL["b"]}, tmp_path / "m-2.safetensors")
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}))
    assert open_weights(index).tensors.keys() == {"a", "b"}
    assert find_weights(tmp_path, "m") == index
    (tmp_path / "m-2.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"m-2\.safetensors: there is no such file"):
        open_weights(index)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON"),
        ("[]", "expected a JSON object, got list"),
        ("{}", "expected an index of weight files"),
        ('{"weight_map": {}}', "expected an index of weight files"),
        ('{"weight_map": {"a": 3}}', "expected an index of weight files"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "expected an index of weight files"),
    ],
)
def test_malformed_index_is_refused(text, message, tmp_path):
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(WeightsError, match=rf"index\.json: {message}"):
        open_weights(index)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is truncated: its 0 bytes"),
        (b"PK\x03\x04 and so on", "is a pickle of torch.save.*gradina convert"),
        (b"\x80\x02}q\x00.", "is a pickle of torch.save.*gradina convert"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"GGUF" + bytes(60), "GGUF"),
        (b"just some text, long enough to have a length", "is no safetensors file"),
        (struct.pack("<Q", 10) + b"not json!!" + bytes(50), "is no safetensors file"),
        (struct.pack("<Q", 5000) + b'{"a":{"dtype":"F32","shape":[1],"data_off', "is truncated"),
    ],
)
def test_other_formats_are_named(content, message, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        open_weights(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [4, 60, 200, -1])
def test_truncated_file_is_refused(kept, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(SMALL, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"is truncated: its .* fetch or copy it again"):
        open_weights(path)


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="there is no such file"):
        open_weights(tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="is a folder"):
        open_weights(tmp_path)


def test_unwritable_target_is_a_disk_error(tmp_path):
    with pytest.raises(DiskError):
        save_weights(SMALL, tmp_path / "none" / "w.safetensors")
    if os.path.exists("/dev/full"):
        with pytest.raises(DiskError):
            save_weights(SMALL, "/dev/full")


def test_model_hash_is_sha256_of_all_bytes(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert model_hash([path]) == "ba7816bf8f"  # SHA-256 of abc, FIPS 180-4
    assert model_hash([path, path]) != model_hash([path])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which pages are a file's")
def test_conversion_releases_mapped_pages(tmp_path: Path) -> None:
    """In a separate process: the pages of the file are released as they are copied, and can be read again."""
    save_weights({f"layer.{i}": torch.ones(4_000_000) * i for i in range(10)}, tmp_path / "a.safetensors")
    script = """
import resource, sys
import torch
from gradina.weights.safetensors import MappedFiles, open_weights, to_dtype
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
weights = open_weights(sys.argv[1])
mapped = MappedFiles(*weights.files)
converted = {name: to_dtype(x, torch.bfloat16, mapped) for name, x in weights.tensors.items()}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)
assert all((weights.tensors[f"layer.{i}"] == i).all() and (converted[f"layer.{i}"] == i).all() for i in range(10))
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "a.safetensors"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        int(done.stdout) < 80_000 + 40_000
    )  # KB: 80 MB in half precision and a margin; without releasing it is 160 MB more


def test_pages_of_other_memory_are_not_released() -> None:
    x = torch.ones(1_000_000)
    MappedFiles(Path("nowhere")).release(x)
    assert (x == 1).all()


@pytest.mark.parametrize("native", ["0", "1"])
@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("of", [torch.bfloat16, torch.float16, torch.float32])
def test_to_dtype_equals_pytorch(
    of: torch.dtype, to: torch.dtype, native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "CAST_AT_ONCE", 100)
    monkeypatch.setenv("GRADINA_NATIVE", native)
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16).float()
    x = every[~every.isnan()].to(of)
    assert to_dtype(every.to(of), to, MappedFiles()).isnan().equal(every.isnan())
    for given in (x, x[:60000].view(300, 200).T, x[:0], x[0]):
        assert torch.equal(to_dtype(given, to, MappedFiles()), given.to(to))
