"""The time embedding against that of diffusers."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch.nn import functional as F

from gradina.nn.embed import TimeMLP, sinusoidal


def test_time_embedding_is_that_of_diffusers() -> None:
    t = torch.tensor([0, 1, 37, 999])
    theirs = get_timestep_embedding(t, 32, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert torch.allclose(sinusoidal(t, 32), theirs, atol=1e-6)
    mlp = TimeMLP(32, 64)
    assert torch.allclose(mlp(t), mlp.proj_out(F.silu(mlp.proj_in(theirs))), atol=1e-6)
    assert mlp.half()(t).dtype == torch.float16
