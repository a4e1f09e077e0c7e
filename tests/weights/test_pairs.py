"""The contrastive pair in the layout of transformers."""

import json

import pytest
import torch
from transformers import CLIPModel

from gradina.errors import WeightsError
from gradina.models.clip import CLIP, TextConfig, VisionConfig
from gradina.weights.pairs import read_pair, write_pair

TEXT = TextConfig(vocabulary=99, length=16, width=48, inner=80, layers=2, heads=4, eos=98, projection=24)
VISION = VisionConfig(size=24, patch=6, width=32, inner=64, layers=2, heads=4, projection=24)


@torch.no_grad()
def test_transformers_loads_it_and_we_load_theirs(folder):
    ours = CLIP(TEXT, VISION).eval()
    write_pair(ours, folder)
    theirs = CLIPModel.from_pretrained(folder)
    ids, pixels = torch.randint(98, (3, 16)), torch.randn(2, 3, 24, 24)
    ids[:, 9:] = 98
    expected = theirs(input_ids=ids, pixel_values=pixels).logits_per_text
    assert torch.allclose(ours(ids, pixels), expected, atol=1e-4)
    theirs.save_pretrained(folder.with_name("theirs"))
    back = read_pair(folder.with_name("theirs"))
    assert (back.text.config, back.vision.config) == (TEXT, VISION)
    assert all(torch.equal(x, ours.state_dict()[name]) for name, x in back.state_dict().items())


def test_a_folder_that_holds_no_pair(folder):
    folder.mkdir()
    with pytest.raises(WeightsError, match=r"has no config\.json of a CLIPModel"):
        read_pair(folder)
    (folder / "config.json").write_text(json.dumps({"projection_dim": 3}))
    with pytest.raises(WeightsError, match="text_config"):
        read_pair(folder)
