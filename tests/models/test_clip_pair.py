"""The contrastive pair against transformers, on random weights."""

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from gradina.models.clip import TextConfig
from gradina.models.clip_pair import CLIP
from gradina.models.clip_vision import VisionConfig
from gradina.weights.key_tables import PAIR
from gradina.weights.remap import read, sources, unclaimed

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
