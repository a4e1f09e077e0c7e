"""The text tower against transformers, on random weights."""

import pytest
import torch
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
)

from gradina.models.clip import TextConfig, TextTower
from gradina.weights.key_tables import TEXT
from gradina.weights.remap import Table, read, sources, unclaimed

from .conftest import TOLERANCE, error, randomise


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
