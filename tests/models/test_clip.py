"""The CLIP towers against transformers, on random weights."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from gradina.models.clip import CLIP, ConvConfig, ConvTower, TextConfig, TextTower, VisionConfig, VisionTower
from gradina.weights.key_tables import PAIR, TEXT, VISION
from gradina.weights.remap import Table, read, sources, unclaimed

TOLERANCE = 1e-4


def error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def randomise(network: nn.Module) -> nn.Module:
    """Norms and biases too, which start as ones and zeros and would hide a mistake."""
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator) if p.ndim < 2 else 0
    return network.eval()


def carry(reference: nn.Module, ours: nn.Module, table: Table, strip: str = "") -> nn.Module:
    """Our network with the reference's weights: every one of them, and nothing else."""
    weights = {strip + name if not name.startswith(strip) else name: w for name, w in reference.state_dict().items()}
    where = sources(ours.state_dict(), table, "transformers")
    assert unclaimed(weights, where) == []
    ours.load_state_dict(read(weights, where), assign=True)
    return ours.eval()


def text_pair(config: TextConfig, eos: int = 49407) -> tuple[CLIPTextModel, TextTower]:
    reference = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=config.vocabulary, max_position_embeddings=config.length, hidden_size=config.width,
            intermediate_size=config.inner, num_hidden_layers=config.layers, num_attention_heads=config.heads,
            hidden_act=config.activation, eos_token_id=eos, attn_implementation="eager",
        )
    )  # fmt: skip
    with torch.device("meta"):
        ours = TextTower(config)
    return reference, carry(randomise(reference), ours, TEXT, strip="text_model.")


SMALL = TextConfig(vocabulary=99, length=16, width=48, inner=80, layers=3, heads=4, eos=98)
SD1 = TextConfig()
SD2 = TextConfig(width=1024, inner=4096, layers=23, heads=16, activation="gelu")


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_text_tower_small(activation):
    config = TextConfig(**{**vars(SMALL), "activation": activation})
    reference, ours = text_pair(config)
    ids = torch.randint(99, (3, 11))
    with torch.no_grad():
        assert error(ours(ids), reference(ids).last_hidden_state) < TOLERANCE


@pytest.mark.parametrize("config", [SD1, SD2], ids=["sd1", "sd2"])
def test_text_tower_at_its_real_size(config, fast_init):
    with fast_init():
        reference, ours = text_pair(config)
    ids = torch.randint(config.vocabulary, (1, 77))
    with torch.no_grad():
        assert error(ours(ids), reference(ids).last_hidden_state) < TOLERANCE


def test_23_layers_are_the_penultimate_state_of_24():
    """What OpenCLIP calls penultimate: all blocks but the last, then the final norm."""
    full = TextTower(TextConfig(**{**vars(SMALL), "layers": 4})).eval()
    cut = TextTower(SMALL).eval()
    cut.load_state_dict({k: v for k, v in full.state_dict().items() if not k.startswith("blocks.3.")})
    ids = torch.randint(99, (2, 16))
    assert torch.equal(cut(ids), full(ids, skip=1))


def test_text_embedding_is_taken_at_the_first_end_of_text():
    config = TextConfig(**{**vars(SMALL), "projection": 24})
    reference = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=99, max_position_embeddings=16, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
            num_attention_heads=4, projection_dim=24, eos_token_id=98,
        )
    )  # fmt: skip
    ours = carry(randomise(reference), TextTower(config), TEXT)
    ids = torch.randint(90, (3, 16))
    ids[:, 9:] = 98
    with torch.no_grad():
        assert error(ours.embed(ids), reference(ids).text_embeds) < TOLERANCE


def test_vision_tower():
    config = VisionConfig(size=24, patch=4, width=48, inner=80, layers=3, heads=4, projection=24)
    reference = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            image_size=24, patch_size=4, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
            num_attention_heads=4, projection_dim=24,
        )
    )  # fmt: skip
    ours = carry(randomise(reference), VisionTower(config), VISION)
    pixels = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        assert error(ours(pixels), reference(pixels).image_embeds) < TOLERANCE


def test_contrastive_pair():
    text = TextConfig(**{**vars(SMALL), "projection": 24})
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
    ours = carry(randomise(reference), CLIP(text, vision), PAIR)
    ids, pixels = torch.randint(98, (4, 16)), torch.randn(3, 3, 24, 24)
    ids[:, -1] = 98
    with torch.no_grad():
        theirs = reference(input_ids=ids, pixel_values=pixels)
        assert error(ours(ids, pixels), theirs.logits_per_text) < TOLERANCE
        assert error(ours(ids, pixels).T, theirs.logits_per_image) < TOLERANCE


def test_patches_that_are_kept_stand_for_the_picture():
    vision = randomise(VisionTower(VisionConfig(size=32, patch=8, width=16, inner=32, layers=2, heads=2, projection=8)))
    pixels = torch.randn(2, 3, 32, 32)
    whole = vision(pixels)
    shuffled = torch.stack([torch.randperm(16) for _ in range(2)])
    assert torch.allclose(vision(pixels, shuffled), whole, atol=1e-5), "the places of patches go with them"
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
