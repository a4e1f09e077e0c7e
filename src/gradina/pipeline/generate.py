"""From a plan to pictures, step by step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from gradina.diffusion.prediction import prediction_named
from gradina.diffusion.samplers import SAMPLERS
from gradina.diffusion.step import Step
from gradina.finite import finite, finite_step
from gradina.images.open import overlay
from gradina.images.picture import Picture
from gradina.pipeline.model import StableDiffusion
from gradina.pipeline.plan import Plan, note_ineffective, plans, prepare, resolved
from gradina.request import Request


def generate(model: StableDiffusion, request: Request) -> Iterator[Picture]:
    """Draws a request: one Picture for each prompt and image, in order, with seeds seed, seed + 1, ...

    A picture is the same whatever it is drawn together with. Raises RequestError or PictureError at once.
    """
    drawn = ((plan, deque(walk(model, plan), maxlen=1)) for plan in plans(model, request))
    return (picture for plan, step in drawn for picture in develop(model, plan, *step))


def steps(model: StableDiffusion, request: Request) -> Iterator[Step]:
    """Draws a request as one batch and yields each step of the walk; `model.preview(step.denoised)` shows it.

    A preview: some samplers end a little above noise level 0, and `generate` lays a mask's known region over the end.

    Raises RequestError or PictureError at once.
    """
    whole = resolved(model, request)
    model = model.adapted(whole)
    note_ineffective(model, whole)
    return walk(model, prepare(model, replace(whole, prompt=whole.prompts, images=1)))


@torch.no_grad()
def walk(model: StableDiffusion, plan: Plan) -> Iterator[Step]:
    """The walk from noise to latents, step by step. Raises NumericalError at a step that gives NaN or infinity."""
    row = SAMPLERS[cast(str, plan.request.sampler)]
    given = {"eta": plan.request.eta, "rates": plan.request.rates, "prediction": prediction_named(model.prediction)}
    options = {k: v for k, v in given.items() if k in row.options and v is not None}
    for step in row.run(plan.denoise, plan.x, plan.sigmas, plan.noise, **options):
        finite(step.denoised, "U-Net", model.unet, model.dtype)
        finite_step(step.x, cast(str, plan.request.sampler))
        yield step


def finished(plan: Plan, step: Step | None = None) -> Tensor:
    """The latents after the last step of a plan, if it has one; outside its mask they are those of its picture."""
    x, sigma = (plan.x, float(plan.sigmas[-1])) if step is None else (step.x, step.sigma)
    z = x / (1 + sigma**2) ** 0.5
    return z if plan.known is None or plan.inside is None else torch.lerp(plan.known, z, plan.inside)


def develop(model: StableDiffusion, plan: Plan, step: Step | None = None) -> list[Picture]:
    """The pictures of a plan after its last step, if it has one; outside its mask they are as they were."""
    pictures = []
    for k, image in enumerate(model.decode(finished(plan, step))):
        alone = plan.request.alone(k)
        if plan.init is not None and plan.mask is not None:
            image = overlay(plan.init, image, plan.mask)
        pictures.append(Picture(image, cast(int, alone.seed), alone, model.about))
    return pictures
