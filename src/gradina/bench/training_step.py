"""One training step (loss, backward, clipping, AdamW, moving average), beside the same with diffusers' modules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from gradina.bench.timing import Runner
from gradina.diffusion.conditioning import Cond
from gradina.diffusion.denoiser import Denoiser, on_states
from gradina.diffusion.prediction import prediction_named
from gradina.models.unet import UNet, UNetConfig
from gradina.training.loop import State, train
from gradina.training.losses import denoising
from gradina.training.settings import Settings
from gradina.weights.open import open_source

BATCH, TOKENS = 32, 24
SETTINGS = Settings(steps=1_000_000, batch=BATCH, lr=1e-5, warmup=0, decay=0)
AUTOCAST = {"fp32": False, "bf16": True}


def backends(folder: Path) -> dict[str, Runner]:
    """The installed backends by name; each call takes a training step and returns the loss."""
    found: dict[str, Runner] = {}
    for dtype in AUTOCAST:
        found[f"gradina {dtype}"] = partial(next, gradina(folder, dtype))
        if find_spec("diffusers"):
            found[f"diffusers {dtype}"] = partial(next, diffusers(folder, dtype))
    return found


def batch(config: UNetConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents (b, c, h, w), noise (b, c, h, w), time steps (b,), text states (b, n, c): the same in all steps."""
    key = torch.Generator().manual_seed(0)
    z, n = (torch.randn(BATCH, config.channels, config.size, config.size, generator=key) for _ in range(2))
    t = torch.randint(1, 999, (BATCH,), generator=key)
    return z, n, t, torch.randn(BATCH, TOKENS, config.context, generator=key)


def gflop(config: UNetConfig) -> float:
    """Of a training step: the backward counts twice the forward."""
    z, _, t, cond = (x.to("meta") for x in batch(config))
    with torch.device("meta"):
        unet = UNet(config)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(z, t, cond)
    return 3 * counter.get_total_flops() / 1e9


def gradina(folder: Path, dtype: str) -> Iterator[float]:
    """Gradina's loop and loss."""
    parts = open_source(folder, dtype=torch.float32)
    z, n, t, cond = batch(parts.unet.config)
    sigma, prediction = parts.schedule.sigmas[t].float(), prediction_named(parts.prediction)

    def loss(network: nn.Module, key: int) -> Tensor:
        return denoising(Denoiser(on_states(network), parts.schedule, prediction), z, n, sigma, Cond(cond))

    settings = replace(SETTINGS, precision="bfloat16" if AUTOCAST[dtype] else "float32")
    for step in train(State.begin(parts.unet.requires_grad_(True), settings), loss, settings):
        yield step.loss


def diffusers(folder: Path, dtype: str) -> Iterator[float]:
    """diffusers' modules, with PyTorch's optimizer and moving average."""
    peer: Any = import_module("diffusers")
    unet = peer.UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).train()
    scheduler = peer.DDPMScheduler.from_pretrained(folder / "scheduler")
    z, n, t, cond = batch(open_source(folder).unet.config)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=SETTINGS.lr, betas=SETTINGS.betas)
    ema_fn = torch.optim.swa_utils.get_ema_multi_avg_fn(SETTINGS.ema)  # type: ignore[no-untyped-call]
    ema = torch.optim.swa_utils.AveragedModel(unet, multi_avg_fn=ema_fn)
    while True:
        with torch.autocast("cpu", torch.bfloat16, enabled=AUTOCAST[dtype]):
            output = unet(scheduler.add_noise(z, n, t), t, encoder_hidden_states=cond).sample
            velocity = scheduler.config.prediction_type == "v_prediction"
            loss = F.mse_loss(output.float(), scheduler.get_velocity(z, n, t) if velocity else n)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(unet.parameters(), SETTINGS.clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(unet)
        yield loss.item()
