"""Strict loading: every parameter is found, and every tensor is used."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradina.errors import WeightsError
from gradina.weights.formats.diffusers import read_folder
from gradina.weights.formats.ldm import read_file


def lose(folder, part, *names):
    path = folder / part / "diffusion_pytorch_model.safetensors"
    save_file({k: x for k, x in load_file(path).items() if k not in names}, path)


def test_missing_and_unexpected_parameters_are_counted_and_named(tiny, folder, saved):
    saved(folder)
    total = len(tiny().unet.state_dict())
    lose(folder, "unet", "conv_in.bias", "conv_out.bias")
    with pytest.raises(WeightsError) as caught:
        read_folder(folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    expected = f"does not fit as U-Net in the diffusers layout: {total - 2} of {total} parameters found; "
    assert str(caught.value) == f"{path}: {expected}2 missing (first: conv_in.bias, conv_out.bias)"
    save_file(load_file(path) | {"extra.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"2 missing \(.*\); 1 unexpected \(first: extra.weight\)"):
        read_folder(folder)


def test_wrong_shape_is_named(folder, saved):
    saved(folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(path) | {"conv_in.bias": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"conv_in.bias has shape \(3,\), expected \(32,\)"):
        read_folder(folder)


def test_integer_weights_are_refused(file, saved):
    tensors, name = load_file(saved(file)), "model.diffusion_model.out.2.weight"
    save_file(tensors | {name: tensors[name].to(torch.int8)}, file)
    with pytest.raises(WeightsError, match=r"out\.2\.weight is int8, expected floating point"):
        read_file(file)
