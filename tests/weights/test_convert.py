"""Between the layouts, in both directions, equal to the bit."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gradina.errors import WeightsError
from gradina.weights.convert import convert
from gradina.weights.formats.diffusers import read_folder, write_folder
from gradina.weights.formats.ldm import read_file, write_file

FORMS = ("sd1", "sd2", "inpainting", "three levels")


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "README.md"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_folder_to_file_and_back(form, dtype, tiny, tmp_path):
    write_folder(tiny(form), tmp_path / "one", dtype=dtype)
    file = convert(tmp_path / "one", tmp_path / "model.safetensors")
    assert convert(file, tmp_path / "two") == tmp_path / "two"
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_file_to_folder_and_back(tiny, tmp_path):
    write_file(tiny("sd2"), tmp_path / "tiny.safetensors")
    convert(tmp_path / "tiny.safetensors", tmp_path / "tiny")
    (tmp_path / "back").mkdir()
    convert(tmp_path / "tiny", tmp_path / "back" / "tiny.safetensors")
    assert (tmp_path / "back" / "tiny.safetensors").read_bytes() == (tmp_path / "tiny.safetensors").read_bytes()


@pytest.mark.parametrize("form", ["sd1", "sd2"])
def test_a_pickle_is_converted(form, tiny, same, tmp_path):
    write_file(tiny(form), tmp_path / "tiny.safetensors")
    state = load_file(tmp_path / "tiny.safetensors")
    torch.save({"state_dict": state, "global_step": np.int64(3)}, tmp_path / "tiny.ckpt")
    prediction = tiny(form).prediction
    file = convert(tmp_path / "tiny.ckpt", tmp_path / "out.safetensors", prediction=prediction)
    back = load_file(file)
    assert back.keys() == state.keys()
    assert all(torch.equal(x, state[name]) for name, x in back.items())
    assert read_file(file).prediction == prediction
    folder = convert(tmp_path / "tiny.ckpt", tmp_path / "out", prediction=prediction)
    assert torch.equal(read_folder(folder).unet.conv_in.weight, tiny(form).unet.conv_in.weight)


@pytest.mark.parametrize("name", ["tiny.ckpt", "wrapped.safetensors"])
def test_a_model_that_a_trainer_wrapped_is_converted_whole(name, saved, tmp_path):
    state = load_file(saved(tmp_path / "tiny.safetensors"))
    wrapped = {f"module.{key}": x for key, x in state.items()}
    if name.endswith(".ckpt"):
        torch.save({"module": wrapped}, tmp_path / name)
    else:
        save_file(wrapped, tmp_path / name)
    back = load_file(convert(tmp_path / name, tmp_path / "out.safetensors"))
    assert back.keys() == state.keys()


def test_other_numbers_where_asked(tiny, tmp_path):
    write_folder(tiny(), tmp_path / "one")
    convert(tmp_path / "one", tmp_path / "half", dtype=torch.float16)
    assert {p.dtype for p in read_folder(tmp_path / "half").text.parameters()} == {torch.float16}


def test_what_cannot_be_converted(tiny, tmp_path):
    write_folder(tiny(), tmp_path / "one")
    with pytest.raises(WeightsError, match="pickles are not written"):
        convert(tmp_path / "one", tmp_path / "model.ckpt")
    with pytest.raises(WeightsError, match="no such folder or file"):
        convert(tmp_path / "none", tmp_path / "two")
    torch.save({"a": torch.zeros(1)}, tmp_path / "odd.ckpt")
    with pytest.raises(WeightsError, match="of an unknown kind"):
        convert(tmp_path / "odd.ckpt", tmp_path / "two")
    assert not (tmp_path / "two").exists()
