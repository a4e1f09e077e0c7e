"""Whole pictures beside the pipelines of diffusers: the same weights, the same seeds, the same picture."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from gradina import Request
from gradina.pipeline.generate import decode_pictures, final_latents, run_sampler
from gradina.pipeline.model import StableDiffusion
from gradina.pipeline.plan import plans

from .conftest import grey

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers, numpy 2

LATENTS = 1e-3  # that latents may differ by
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
KARRAS = ("lms", "euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc")
CASES = [*((name, "leading") for name in SCHEDULERS), *((name, "karras") for name in KARRAS)]

Make = Callable[[type, str], Any]


class _Restarted:
    """Mends the reference where a run is cut: its PNDM and LMS go on as if they had a past, and go astray.

    PNDM's first step takes the time steps in the order t0 t1 t1, which a cut list has no more; LMS takes the weights
    of an order for which it has no slopes. Here both begin at the cut, as they do at the beginning of a run.
    """

    def get_timesteps(self, steps: int, strength: float, device: Any = None, **kwargs: Any) -> Any:
        scheduler: Any = self.scheduler  # type: ignore[attr-defined]
        start = steps - min(int(steps * strength), steps)
        if isinstance(scheduler, diffusers.PNDMScheduler):
            left = scheduler.timesteps.unique().flip(0)[start:]
            scheduler.timesteps = torch.cat([left[:2], left[1:2], left[2:]])
        elif isinstance(scheduler, diffusers.LMSDiscreteScheduler):
            scheduler.timesteps, scheduler.sigmas = scheduler.timesteps[start:], scheduler.sigmas[start:]
        else:
            return super().get_timesteps(steps, strength, device, **kwargs)  # type: ignore[misc]
        return scheduler.timesteps, steps - start


class Img2Img(_Restarted, StableDiffusionImg2ImgPipeline):
    pass


class Inpaint(_Restarted, StableDiffusionInpaintPipeline):
    def get_timesteps(self, num_inference_steps: int, strength: float, device: Any = None) -> Any:
        return super().get_timesteps(num_inference_steps, strength, device)


@pytest.fixture(scope="module")
def reference(tiny_model: Callable[[str], StableDiffusion], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`reference(cls, form)`: a pipeline of diffusers, loaded from the folder that our model writes."""
    folder: Path = tmp_path_factory.mktemp("models")

    @cache
    def loaded(form: str) -> Any:
        cls = StableDiffusionInpaintPipeline if form == "inpainting" else StableDiffusionPipeline
        tiny_model(form).save(folder / form)
        return cls.from_pretrained(folder / form, safety_checker=None)

    @cache
    def make(cls: type, form: str) -> Any:
        pipe = cls(**loaded(form).components, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        pipe.first_config = loaded(form).scheduler.config  # of which each scheduler is made
        return pipe

    return make


@contextmanager
def _counted(unet: nn.Module) -> Any:
    calls: list[int] = []
    hook = unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    yield calls
    hook.remove()


def _theirs(pipe: Any, request: Request, **kwargs: Any) -> tuple[Tensor, list[Image.Image], list[int]]:
    """Latents, pictures and the batch of each call of the U-Net, as diffusers has them."""
    name, own = SCHEDULERS[request.sampler or ""]
    spacing = {"timestep_spacing": request.schedule}
    if request.schedule == "karras":  # which takes its ends from the spaced levels; k-diffusion's are all levels'
        spacing = {"use_karras_sigmas": True, "timestep_spacing": "linspace"}
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.first_config, **own, **spacing)
    prompts = list(request.prompts)
    with _counted(pipe.unet) as calls:
        z = pipe(
            prompts,
            negative_prompt=[request.negative_prompt] * len(prompts),
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            generator=[torch.Generator("cpu").manual_seed((request.seed or 0) + i) for i in range(len(prompts))],
            output_type="latent",
            **kwargs,
        ).images
    with torch.no_grad():
        pixels = pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample
    return z, pipe.image_processor.postprocess(pixels, output_type="pil"), calls


def _ours(model: StableDiffusion, request: Request) -> tuple[Tensor, list[Image.Image], list[int]]:
    (plan,) = plans(model, request, one_batch=True)
    with _counted(model.unet) as calls:
        *_, step = run_sampler(plan)
    z = final_latents(plan, step)
    if plan.resolved.mask is None:
        assert [grey(p.image, q) for p, q in zip(decode_pictures(model, plan, step), model.decode(z), strict=True)] == [
            0
        ] * len(z)
    return z, model.decode(z), calls


def _same(ours: tuple[Tensor, list[Image.Image], list[int]], theirs: tuple[Tensor, Any, list[int]]) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=LATENTS)
    assert max(grey(a, b) for a, b in zip(ours[1], theirs[1], strict=True)) <= 1
    assert ours[2] == theirs[2]  # as many calls of the U-Net, of as many pictures


@pytest.mark.parametrize(
    ("steps", "scale", "negative", "images"), [(10, 7.5, "blue, the night", 2), (20, 1, "", 1), (50, 7.5, "", 1)]
)
@pytest.mark.parametrize(("sampler", "schedule"), CASES)
def test_text_to_image(
    sampler: Any, schedule: Any, steps: int, scale: float, negative: str, images: int, tiny_model: Any, reference: Make
) -> None:
    asked = Request(prompt="a red boat", seed=5, steps=steps, sampler=sampler, schedule=schedule, images=images)
    asked = replace(asked, guidance_scale=scale, negative_prompt=negative)
    _same(_ours(tiny_model("sd1"), asked), _theirs(reference(StableDiffusionPipeline, "sd1"), asked))


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize(("sampler", "schedule"), CASES)
def test_pictures_of_stable_diffusion_2(
    sampler: Any, schedule: Any, steps: int, tiny_model: Any, reference: Make
) -> None:  # fmt: skip
    pipe, model = reference(StableDiffusionPipeline, "sd2"), tiny_model("sd2")
    request = Request(prompt="a red boat!", seed=5, steps=steps, sampler=sampler, schedule=schedule, guidance_scale=7.5)
    _same(_ours(model, request), _theirs(pipe, request))


@pytest.mark.parametrize("form", ["sd1", "sd2"])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_guidance_rescale(form: str, sampler: Any, tiny_model: Any, reference: Make) -> None:
    asked = Request(
        prompt=["a red boat", "seven"], seed=5, steps=10, sampler=sampler, schedule="leading", guidance_scale=7.5
    )
    asked = replace(asked, guidance_rescale=0.7)
    _same(
        _ours(tiny_model(form), asked), _theirs(reference(StableDiffusionPipeline, form), asked, guidance_rescale=0.7)
    )


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_eta(eta: float, tiny_model: Any, reference: Make) -> None:
    asked = Request(prompt="seven", seed=5, steps=10, sampler="ddim", schedule="leading", guidance_scale=3, eta=eta)
    _same(_ours(tiny_model("sd1"), asked), _theirs(reference(StableDiffusionPipeline, "sd1"), asked, eta=eta))


@pytest.mark.parametrize(("width", "height"), [(72, 56), (40, 104)])
def test_sizes_that_do_not_halve(width: int, height: int, tiny_model: Any, reference: Make) -> None:
    asked = Request(prompt="seven", seed=5, steps=4, sampler="euler", schedule="leading", guidance_scale=3)
    asked = replace(asked, width=width, height=height)
    pipe = reference(StableDiffusionPipeline, "sd1")
    _same(_ours(tiny_model("sd1"), asked), _theirs(pipe, asked, width=width, height=height))


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
@pytest.mark.parametrize(("sampler", "schedule"), CASES)
def test_image_to_image(
    sampler: Any, schedule: Any, strength: float, tiny_model: Any, reference: Make, init: Image.Image
) -> None:
    form = "sd2" if sampler in ("ddim", "dpmpp_2m") and schedule == "leading" else "sd1"
    asked = Request(
        prompt="a red boat", seed=5, steps=10, sampler=sampler, schedule=schedule, guidance_scale=3, images=2
    )
    asked = replace(asked, init_image=init, strength=strength)
    _same(_ours(tiny_model(form), asked), _theirs(reference(Img2Img, form), asked, image=init, strength=strength))


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("form", ["sd1", "inpainting"])
@pytest.mark.parametrize(("sampler", "schedule"), CASES)
def test_inpainting(
    sampler: Any, schedule: Any, form: str, strength: float, tiny_model: Any, reference: Make, init: Any, mask: Any
) -> None:
    """One picture at a time: theirs gives all pictures of a batch the random numbers of the first."""
    asked = Request(prompt="a red boat", seed=5, steps=6, sampler=sampler, schedule=schedule, guidance_scale=3)
    asked = replace(asked, init_image=init, mask_image=mask, strength=strength)
    given = {"image": init, "mask_image": mask, "strength": strength}
    _same(_ours(tiny_model(form), asked), _theirs(reference(Inpaint, form), asked, **given))


@pytest.mark.parametrize(("sampler", "strength"), [("pndm", 0.3), ("pndm", 0.8), ("lms", 0.3), ("lms", 0.8)])
def test_as_many_unet_calls_as_the_unpatched_reference(
    sampler: Any, strength: float, tiny_model: Any, reference: Make, init: Image.Image
) -> None:
    asked = Request(prompt="seven", seed=5, steps=10, sampler=sampler, schedule="leading", guidance_scale=3)
    asked = replace(asked, init_image=init, strength=strength)
    pipe = reference(StableDiffusionImg2ImgPipeline, "sd1")
    assert _ours(tiny_model(), asked)[2] == _theirs(pipe, asked, image=init, strength=strength)[2]


def test_an_init_image_of_another_size_is_resized_as_in_diffusers(tiny_model: Any, reference: Make) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (100, 90, 3), dtype=np.uint8)
    init, mask = Image.fromarray(noise), Image.fromarray(noise[..., 0]).resize((30, 50))
    asked = Request(prompt="seven", seed=5, steps=4, sampler="euler", schedule="leading", guidance_scale=3)
    asked = replace(asked, init_image=init, mask_image=mask, strength=0.8, width=64, height=64)
    given = {"image": init, "mask_image": mask, "strength": 0.8, "width": 64, "height": 64}
    _same(_ours(tiny_model(), asked), _theirs(reference(Inpaint, "sd1"), asked, **given))
