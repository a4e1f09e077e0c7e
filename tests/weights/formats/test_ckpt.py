"""Old checkpoints: their tensors are read, and no code in them is run."""

import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from gradina.errors import WeightsError
from gradina.weights.formats.ckpt import is_pickle, read_pickle

STATE = {"model.weight": torch.arange(6.0).reshape(2, 3), "model.bias": torch.ones(3, dtype=torch.float16)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.ckpt"


def assert_state(weights):
    assert weights.tensors.keys() == STATE.keys()
    assert all(torch.equal(weights.tensors[name], x) for name, x in STATE.items())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 2020"])
@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "module", "model module", ""])
def test_state_dict_in_any_wrapper(wrapper, zipped, path):
    content = OrderedDict(STATE)
    for name in reversed(wrapper.split()):
        content = {name: content, "epoch": 3, "hyper": {"lr": 1e-4}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert is_pickle(path)
    assert_state(read_pickle(path))


def test_pickle_named_safetensors_is_read(tmp_path):
    torch.save(STATE, tmp_path / "model.safetensors")
    assert_state(read_pickle(tmp_path / "model.safetensors"))


def trainers_class(monkeypatch, module, name):
    """A class of a trainer's module, which exists only while the checkpoint is written."""
    made = type(name, (), {"__module__": module, "__init__": lambda self: setattr(self, "x", 1)})
    parts = module.split(".")
    for i in range(len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[: i + 1]), types.ModuleType(".".join(parts[: i + 1])))
    setattr(sys.modules[module], name, made)
    return made


def test_objects_of_trainers_are_ignored(path, monkeypatch):
    """As sd-v1-4.ckpt has it: a callback's class as a key, numpy scalars as values."""
    with monkeypatch.context() as writing:
        callback = trainers_class(writing, "pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
        content = {
            "callbacks": {callback: {"best_model_score": np.float64(0.5), "current": torch.tensor(1)}},
            "object": callback(),
            "steps": np.int64(470000),
            "state_dict": STATE,
        }
        torch.save(content, path)
    assert_state(read_pickle(path))


class Hostile:
    def __init__(self, marker, call):
        self.marker, self.call = marker, call

    def __reduce__(self):
        return self.call, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 2020"])
@pytest.mark.parametrize(("call", "named"), [(os.system, "system"), (eval, "eval"), (os.popen, "popen")])
def test_hostile_pickle_is_named_and_not_run(call, named, zipped, path, tmp_path):
    marker = tmp_path / "ran"
    torch.save({"state_dict": STATE, "x": Hostile(marker, call)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        WeightsError, match=rf"wants to use \S*{named}, which no weights need.*nothing in it was run"
    ) as caught:
        read_pickle(path)
    assert not marker.exists()
    assert str(caught.value).startswith(f"{path}: ")


def test_hostile_pickle_is_a_real_one(path, tmp_path):
    marker = tmp_path / "ran"
    torch.save({"x": Hostile(marker, os.system)}, path)
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_functions_of_inert_modules_are_not_called(path, tmp_path):
    """The functions of numpy are names under numpy, too: they become inert objects, and are not called."""
    marker = tmp_path / "ran"
    call = b"cnumpy.testing._private.utils\nrunstring\n(X\x05\x00\x00\x00touch}tR"
    body = b"\x80\x02}(X\x01\x00\x00\x00a" + call + b"X\x01\x00\x00\x00bK\x01u."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/version", "3\n")
    with pytest.raises(WeightsError, match="holds no tensors by name"):
        read_pickle(path)
    assert not marker.exists()


def test_bare_pickles_are_refused(path, tmp_path):
    marker = tmp_path / "ran"
    path.write_bytes(pickle.dumps(Hostile(marker, os.system), protocol=2))
    with pytest.raises(WeightsError):
        read_pickle(path)
    assert not marker.exists()
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(WeightsError):
        read_pickle(path)


@pytest.mark.parametrize("kept", [10, 200, -30])
def test_truncated_checkpoint_is_refused(kept, path):
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match="truncated or damaged"):
        read_pickle(path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(2), {}])
def test_pickle_without_named_tensors_is_refused(content, path):
    torch.save(content, path)
    with pytest.raises(WeightsError, match="holds no tensors by name"):
        read_pickle(path)


def test_other_zip_file_is_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(WeightsError, match="damaged"):
        read_pickle(path)
