"""The image towers and the pair: against transformers, and against torch's own layers, on random weights."""

import copy

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from gradina.models.clip import TextConfig
from gradina.models.clip_vision import CLIP, ConvConfig, ConvTower, VisionConfig, VisionTower
from gradina.weights.key_tables import PAIR, VISION
from gradina.weights.remap import read, sources, unclaimed

from .conftest import TOLERANCE, error, randomise


def test_vision_tower():
    config = VisionConfig(size=24, patch=4, width=48, inner=80, layers=3, heads=4, projection=24)
    reference = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            image_size=24, patch_size=4, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
            num_attention_heads=4, projection_dim=24,
        )
    )  # fmt: skip
    ours, weights = VisionTower(config), randomise(reference).state_dict()
    where = sources(ours.state_dict(), VISION, "transformers")
    assert unclaimed(weights, where) == []
    ours.load_state_dict(read(weights, where), assign=True)
    pixels = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        assert error(ours(pixels), reference(pixels).image_embeds) < TOLERANCE


def test_patches_that_are_kept_stand_for_the_picture():
    vision = randomise(VisionTower(VisionConfig(size=32, patch=8, width=16, inner=32, layers=2, heads=2, projection=8)))
    pixels = torch.randn(2, 3, 32, 32)
    whole = vision(pixels)
    shuffled = torch.stack([torch.randperm(16) for _ in range(2)])
    assert torch.allclose(vision(pixels, shuffled), whole, atol=1e-5), "the positions of patches go with them"
    half = shuffled[:, :8]
    elsewhere = pixels.clone()
    for picture, kept in zip(elsewhere, half, strict=True):
        for patch in set(range(16)) - set(kept.tolist()):
            y, x = divmod(patch, 4)
            picture[:, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = 3.0
    assert torch.allclose(vision(pixels, half), vision(elsewhere, half), atol=1e-6), "others are not looked at"
    assert not torch.allclose(vision(pixels, half), whole, atol=1e-3)


def plain_tower(tower: ConvTower) -> nn.Sequential:
    """The same out of torch's own layers, with the same weights."""
    layers: list[nn.Module] = []
    for i, (conv, norm) in enumerate(zip(tower.convs, tower.norms, strict=True)):
        ours = {"weight": norm.weight, "bias": norm.bias, "running_mean": norm.mean, "running_var": norm.var}
        theirs = nn.BatchNorm2d(len(norm.weight))
        theirs.load_state_dict(ours, strict=False)
        layers += [copy.deepcopy(conv), theirs, nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i in (2, 4) else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), copy.deepcopy(tower.projection))


def test_tower_of_convolutions():
    tower = randomise(ConvTower(ConvConfig(size=32, widths=(4, 6, 8), projection=10)))
    reference, pixels = plain_tower(tower), torch.randn(5, 3, 32, 32)
    for learning in (True, False):  # first with the batch's own figures, then with those that were kept of it
        with torch.no_grad():
            assert error(tower.train(learning)(pixels), reference.train(learning)(pixels)) < TOLERANCE
    assert torch.allclose(tower.norms[1].var, reference[4].running_var, rtol=1e-5)
    every = torch.stack([torch.randperm(16) for _ in range(5)])
    assert tower.config.positions == 16
    assert torch.allclose(tower(pixels, every), tower(pixels), atol=1e-6)
    assert not torch.allclose(tower(pixels, every[:, :4]), tower(pixels), atol=1e-3)


def test_contrastive_pair():
    text = TextConfig(
        vocabulary=99, length=16, width=48, inner=80, layers=3, heads=4, eos=98, projection=24,
    )  # fmt: skip
    vision = VisionConfig(size=24, patch=6, width=32, inner=64, layers=2, heads=4, projection=24)
    reference = CLIPModel(
        CLIPConfig(
            text_config={"vocab_size": 99, "max_position_embeddings": 16, "hidden_size": 48, "intermediate_size": 80,
                         "num_hidden_layers": 3, "num_attention_heads": 4, "eos_token_id": 98},
            vision_config={"image_size": 24, "patch_size": 6, "hidden_size": 32, "intermediate_size": 64,
                           "num_hidden_layers": 2, "num_attention_heads": 4},
            projection_dim=24,
        )
    )  # fmt: skip
    ours, weights = CLIP(text, vision).eval(), randomise(reference).state_dict()
    where = sources(ours.state_dict(), PAIR, "transformers")
    assert unclaimed(weights, where) == []
    ours.load_state_dict(read(weights, where), assign=True)
    ids, pixels = torch.randint(98, (4, 16)), torch.randn(3, 3, 24, 24)
    ids[:, -1] = 98
    with torch.no_grad():
        theirs = reference(input_ids=ids, pixel_values=pixels)
        assert error(ours(ids, pixels), theirs.logits_per_text) < TOLERANCE
        assert error(ours(ids, pixels).T, theirs.logits_per_image) < TOLERANCE
