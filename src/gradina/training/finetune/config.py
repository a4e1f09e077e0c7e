"""How a model is fine-tuned: one frozen configuration, which is also what the command line offers; without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from gradina.training.settings import NOT_NEGATIVE, POSITIVE, SHARE, NoiseLaw, Option, Settings


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Settings, NoiseLaw):
    """All that decides how a method trains; fields with an Option are options of the command line."""

    seed: Annotated[int, Option(True, "Seed of all random draws.")] = 0
    rank: Annotated[int | None, POSITIVE, Option(True, "Rank of the LoRA.", minimum=1)] = 8
    alpha: float | None = None  # of the LoRA; None: its rank
    targets: tuple[str, ...] = (r".*attn\.(q|k|v|out)",)  # patterns of the layers that get a LoRA
    text_rate: Annotated[float, NOT_NEGATIVE, Option("0", "Factor of the text tower's rate; 0 freezes it.")] = 0.0
    caption_dropout: Annotated[float, SHARE, Option("0.1", "Share of captions that are dropped, for guidance.")] = 0.1
    checkpointing: Annotated[bool, Option("off", "Recompute activations in the backward pass, to save memory.")] = False
    prior: Annotated[float, NOT_NEGATIVE, Option("1", "Weight of the pictures of the class.")] = 1.0
    vectors: Annotated[int, POSITIVE, Option(True, "Tokens of the new word.", minimum=1)] = 1


@dataclass(frozen=True)
class Published:
    """A method's published settings for Stable Diffusion."""

    steps: int
    lora_lr: float  # learning rate of a LoRA, or of what the method trains in its place
    full_lr: float  # of all weights
    key: str  # its name in fingerprints and random keys: it stays when methods are renamed, so that runs resume
    accumulate: int = 1
    ema: float = 0.0


METHODS = {  # sources: diffusers' example scripts and their guides; for Imagic, the paper's settings, section 4
    #                              steps  LoRA  all   key
    "finetune":          Published(1000, 1e-4, 1e-5, "finetune", accumulate=4, ema=0.999),
    "dreambooth":        Published(800,  1e-4, 5e-6, "dreambooth"),
    "textual_inversion": Published(3000, 2e-3, 2e-3, "inversion", accumulate=4),
    "imagic_embedding":  Published(1000, 2e-3, 2e-3, "nearer"),
    "imagic_finetune":   Published(1500, 1e-4, 5e-7, "onto"),
}  # fmt: skip


def config_for(method: str, **given: Any) -> FinetuneConfig:
    """The configuration of a method: its published settings, except for what is given; None counts for `rank` only."""
    row, rank = METHODS[method], given.get("rank", FinetuneConfig.rank)
    published = {"steps": row.steps, "lr": row.full_lr if rank is None else row.lora_lr, "batch": 1, "warmup": 0}
    published |= {"accumulate": row.accumulate, "ema": row.ema, "decay": 0.0}
    chosen = {name: value for name, value in given.items() if value is not None}
    return FinetuneConfig(**{**published, **chosen, "rank": rank})
