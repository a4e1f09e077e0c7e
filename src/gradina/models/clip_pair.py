"""CLIP's contrastive pair of a text tower and an image tower, whose embeddings are compared."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradina.models.clip import TextConfig, TextTower
from gradina.models.clip_vision import ConvConfig, VisionConfig, vision_tower


class CLIP(nn.Module):
    """The contrastive pair: how well each of some texts describes each of some pictures."""

    def __init__(self, text: TextConfig, vision: VisionConfig | ConvConfig) -> None:
        super().__init__()
        self.text = TextTower(text)
        self.vision = vision_tower(vision)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def texts(self, ids: Tensor) -> Tensor:
        """Embeddings of norm 1 for token ids (b, n): (b, projection)."""
        return F.normalize(self.text.embed(ids), dim=1)

    def pictures(self, pixels: Tensor, kept: Tensor | None = None) -> Tensor:
        """Embeddings of norm 1 for pictures (b, c, size, size), or for some of their patches: (b, projection)."""
        return F.normalize(self.vision(pixels, kept), dim=1)

    def forward(self, ids: Tensor, pixels: Tensor) -> Tensor:
        """Scaled cosine similarities, (texts, pictures); its transpose reads them the other way.

        Source: Radford et al., figure 3.
        """
        return self.logit_scale.exp() * self.texts(ids) @ self.pictures(pixels).T
