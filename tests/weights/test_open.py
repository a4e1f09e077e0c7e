"""Options reach the components that are opened."""

import torch

from gradina.weights.formats.diffusers import write_folder
from gradina.weights.open import open_source


def test_dtype_and_prediction_reach_the_components(tiny, tmp_path):
    write_folder(tiny(), tmp_path / "m")
    parts = open_source(tmp_path / "m", prediction="v", dtype=torch.bfloat16)
    assert (parts.prediction, parts.vae.quant.weight.dtype) == ("v", torch.bfloat16)
