"""The one loop in which pictures are drawn, as events, and its two views: finished pictures, or steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from gradina.diffusion.prediction import prediction_named
from gradina.diffusion.step import Step
from gradina.finite import finite, finite_step
from gradina.images.open import overlay
from gradina.images.picture import Picture
from gradina.pipeline.model import StableDiffusion
from gradina.pipeline.plan import Plan, plans
from gradina.request import Request


def events(model: StableDiffusion, request: Request) -> Iterator[Plan | Step | Picture]:
    """Draws a request, and yields for each batch its Plan, a Step for each noise level, and its Pictures.

    Plans and Steps name their `pictures` by index in the request. Raises RequestError or PictureError at once.
    """
    return chain.from_iterable(_drawn(model, plan) for plan in plans(model, request))


def generate(model: StableDiffusion, request: Request) -> Iterator[Picture]:
    """Draws a request: one Picture for each prompt and image, in order, with seeds seed, seed + 1, ...

    A picture is the same whatever it is drawn together with. Raises RequestError or PictureError at once.
    """
    return (event for event in events(model, request) if isinstance(event, Picture))


def steps(model: StableDiffusion, request: Request) -> Iterator[Step]:
    """Draws a request as one batch and yields each Step; `model.preview(step.denoised)` shows it.

    A preview: some samplers end a little above noise level 0, and `generate` lays the kept part of a masked picture
    over the end. Raises RequestError or PictureError at once.
    """
    (plan,) = plans(model, request, one_batch=True)
    return run_sampler(plan)


def _drawn(model: StableDiffusion, plan: Plan) -> Iterator[Plan | Step | Picture]:
    yield plan
    step = None
    for step in run_sampler(plan):
        yield step
    yield from decode_pictures(model, plan, step)


@torch.no_grad()
def run_sampler(plan: Plan) -> Iterator[Step]:
    """The steps from noise to latents. Raises NumericalError at a step that gives NaN or infinity."""
    model, request, sampler = plan.resolved.model, plan.resolved.request, plan.resolved.sampler
    given = {"eta": request.eta, "rates": request.rates, "prediction": prediction_named(model.prediction)}
    options = {k: v for k, v in given.items() if k in sampler.options and v is not None}
    for step in sampler.run(plan.denoise, plan.x, plan.sigmas, plan.noise, **options):
        finite(step.denoised, "U-Net", model.unet, model.dtype)
        finite_step(step.x, plan.resolved.settings.sampler)
        yield replace(step, pictures=plan.pictures)


def final_latents(plan: Plan, step: Step | None) -> Tensor:
    """The latents after the last step, if a plan has one; outside its mask they are those of its picture."""
    z = plan.latents if step is None else step.latents
    return z if plan.kept is None else torch.lerp(plan.kept[0], z, plan.kept[1])


def decode_pictures(model: StableDiffusion, plan: Plan, step: Step | None) -> list[Picture]:
    """The pictures of a plan after its last step, if it has one; outside its mask they are as they were."""
    init, mask, pictures = plan.resolved.init, plan.resolved.mask, []
    for i, image in zip(plan.pictures, model.decode(final_latents(plan, step)), strict=True):
        image = image if init is None or mask is None else overlay(init, image, mask)
        request = plan.resolved.request
        pictures.append(Picture(image, request.seeds[i], request.alone(i), model.about))
    return pictures
