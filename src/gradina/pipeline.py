"""From a request to pictures: the one place where networks and mathematics meet to draw."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from itertools import chain, groupby
from os import PathLike
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gradina.adapters.inject import Network as Part
from gradina.adapters.lora import merged
from gradina.adapters.textual_inversion import Concept, taught
from gradina.diffusion.denoiser import Denoise, Denoiser, Network, noised, with_channels
from gradina.diffusion.guidance import cfg, masked
from gradina.diffusion.noise import Noise
from gradina.diffusion.prediction import prediction_named
from gradina.diffusion.samplers import SAMPLERS, SamplerSpec
from gradina.diffusion.schedule import img2img_sigmas, sampling_sigmas
from gradina.diffusion.step import Step
from gradina.errors import RequestError
from gradina.files import content
from gradina.finite import finite, finite_step
from gradina.images.open import fit, open_mask, open_picture, overlay
from gradina.images.picture import Picture
from gradina.ineffective import (
    UNGUIDED,
    concept_notes,
    guidance_notes,
    mask_notes,
    prompt_notes,
    sampler_notes,
    start_notes,
)
from gradina.models.deepcache import DeepCache
from gradina.models.taesd import TinyDecoder
from gradina.request import Request, word_and_file
from gradina.runtime.device import DTYPES, Engine, pick_device, pick_dtype, pick_engine
from gradina.runtime.engines import Call, Decoding, with_engine
from gradina.runtime.memory import trim_heap
from gradina.runtime.offload import SequentialOffload
from gradina.runtime.prepack import converted, prepack
from gradina.weights.components import Components
from gradina.weights.formats.imagic import read_states
from gradina.weights.formats.lora import read_lora
from gradina.weights.formats.textual_inversion import read_concept
from gradina.weights.mmap import Mapped
from gradina.weights.safetensors import in_type

log = logging.getLogger(__name__)

AT_ONCE = 64 * 64  # places of latents that are drawn in one batch: one 512x512 picture, or many small ones


@dataclass(frozen=True, eq=False, kw_only=True)
class StableDiffusion(Components):
    """A model, ready to draw: tokenizer, text tower, autoencoder, U-Net, schedule."""

    engine: Engine = "eager"  # how U-Net and decoder are computed
    lean: SequentialOffload | None = None  # in little memory: what takes the networks out of their files, one at a time
    tiny: TinyDecoder | None = None  # what previews are decoded by, if not by the autoencoder
    concepts: tuple[Concept, ...] = ()  # that were added to its words

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type its networks compute in; latents are fp32 throughout."""
        return self.lean.dtype if self.lean else self.unet.conv_in.weight.dtype

    def adapted(self, request: Request) -> StableDiffusion:
        """This model with the LoRAs of a request in its weights, and its concepts among its words.

        It stays as it is itself; what a request asked for last is kept for the next. Raises WeightsError for a file
        that does not fit.
        """
        loras = request.loras if request.edit is None else (*request.loras, (request.edit[0], 1.0))
        files = (*(word_and_file(one)[1] for one in request.concepts), *(path for path, _ in loras))
        if not files:
            return self
        key = (request.concepts, loras, tuple(content(file) if Path(file).is_file() else "" for file in files))
        if key not in self._adapted:
            stack = [(read_lora(path, self.unet, self.text), scale) for path, scale in loras]
            unet = merged(self.unet, *((lora.unet, scale) for lora, scale in stack))
            text = merged(self.text, *((lora.text, scale) for lora, scale in stack))
            concepts = tuple(map(read_concept, request.concepts))
            tokenizer, text = taught(self.tokenizer, text, concepts)
            self._adapted.clear()
            self._adapted[key] = replace(self, unet=unet, text=text, tokenizer=tokenizer, concepts=concepts)
        return self._adapted[key]

    @cached_property
    def _adapted(self) -> dict[object, StableDiffusion]:
        return {}

    @property
    def about(self) -> dict[str, str]:
        """What a picture's file says of the model that drew it: also in which numbers it computed."""
        named = [name for name, dtype in DTYPES.items() if dtype == self.dtype]
        engine = {"engine": self.engine} if self.engine in ("compile", "openvino") else {}
        return super().about | ({"dtype": named[0]} if named else {}) | engine

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Tensor:
        """Text states of prompts (b, n, width); a long prompt is read in chunks and makes all as long as itself."""
        ids, known = self.tokenizer.chunks(texts).to(self.device), len(self.text.token.weight)
        if len(self.tokenizer) > known and int(ids.max()) >= known:
            token = self.tokenizer.token(int(ids.max()))
            raise RequestError(f"prompt: {token!r} is a token that the text tower does not know; leave it out")
        states = self.awake(self.text)(ids.flatten(0, 1)).reshape(len(texts), -1, self.text.config.width)
        return finite(states, "text tower", self.text, self.dtype)

    @torch.no_grad()
    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents (b, 4, h/8, w/8) of pixels (b, 3, h, w) in -1..1: the mean, or a sample if unit noise is given."""
        given = None if noise is None else noise.to(self.device, self.dtype)
        z = self.awake(self.vae).encode(pixels.to(self.device, self.dtype), given)
        return finite(z, "autoencoder (its encoder)", self.vae, self.dtype).float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (b, 4, h, w), such as those of `Step.denoised`."""
        trim_heap()
        decoded = (self._decode(z[None].to(self.device, self.dtype))[0] for z in latents)
        return [to_image(finite(x, "autoencoder (its decoder)", self.vae, self.dtype).float()) for x in decoded]

    @torch.no_grad()
    def preview(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (b, 4, h, w), rough but quick where a tiny decoder was loaded."""
        if self.tiny is None:
            return self.decode(latents)
        decoded = (self.tiny(z[None].to(self.device, self.dtype))[0] for z in latents)
        return [to_image(finite(x, "tiny decoder", self.tiny, self.dtype).float()) for x in decoded]

    def network(self, reuse: int = 1) -> Network:
        """The U-Net in its own number type, given fp32 and giving fp32; above 1, `reuse` makes it serve one walk only.

        Raises RequestError for a `reuse` that the engine does not have.
        """
        if reuse > 1 and self.engine in ("compile", "openvino"):
            raise RequestError(f"reuse: got {reuse}, but {self.engine} computes the U-Net as a whole; try engine eager")
        unet = DeepCache(self.awake(self.unet), reuse) if reuse > 1 else self._unet
        return lambda x, t, cond: unet(x.to(self.dtype), t, cond.to(self.dtype)).float()

    def awake(self, network: Part) -> Part:
        """One of the networks, ready to compute."""
        return network if self.lean is None else self.lean(network)

    @cached_property
    def _unet(self) -> Call:
        if self.lean is not None:
            return lambda *inputs: self.awake(self.unet)(*inputs)
        return with_engine(self.unet, self.engine)

    @cached_property
    def _decode(self) -> Call:
        if self.lean is not None:
            return lambda z: self.awake(self.vae).decode(z)
        return with_engine(Decoding(self.vae), self.engine, often=False)

    def save(self, path: str | PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Writes the model as a folder in the layout of diffusers, with a card; whole or not at all.

        It is stored in `dtype`, or in the numbers in which it computes: those of fp32 keep all that a file had.
        """
        from gradina.weights.formats.diffusers import write_folder

        write_folder(self, Path(path), dtype=dtype)


def to_pixels(picture: Image.Image) -> Tensor:
    """A picture as (3, h, w) in -1..1."""
    values = torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32))
    return (values / 127.5 - 1).permute(2, 0, 1)


def to_image(pixels: Tensor) -> Image.Image:
    """Pixels (3, h, w) in -1..1 as a picture; what lies outside is cut off."""
    values = (pixels.cpu() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())


@dataclass(frozen=True)
class Plan:
    """All that a sampler needs to draw one batch, and the pictures that it starts from."""

    request: Request  # resolved; one prompt for each picture
    denoise: Denoise
    x: Tensor
    sigmas: Tensor
    noise: Noise
    init: Image.Image | None
    mask: Image.Image | None  # 255 where the picture is drawn anew, else 0
    known: Tensor | None = None  # the latents of init, and
    inside: Tensor | None = None  # 1 where they are drawn anew, else 0: where the U-Net itself reads no mask


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


def plans(model: StableDiffusion, request: Request) -> Iterator[Plan]:
    """The batches in which a request is drawn; the first is prepared at once, so that errors come early."""
    whole = resolved(model, request)
    model = model.adapted(whole)
    note_ineffective(model, whole)
    first, *rest = batches(model, whole)
    return chain([prepare(model, first)], (prepare(model, part) for part in rest))


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


def resolved(model: StableDiffusion, request: Request) -> Request:
    """The request with the model's defaults; a picture to start from keeps its shape, at the model's number of pixels.

    Raises RequestError if the model cannot draw at that size.
    """
    unit, defaults = max(8, model.vae.config.factor), model.defaults
    if request.init_image is not None and request.width is None and request.height is None:
        width, height = open_picture(request.init_image).size
        scale = (defaults.width * defaults.height / (width * height)) ** 0.5
        sides = (max(unit, round(side * scale / unit) * unit) for side in (width, height))
        request = replace(request, **dict(zip(("width", "height"), sides, strict=True)))
    request = request.resolved(defaults)
    for name in ("width", "height"):
        if getattr(request, name) % unit:
            raise RequestError(f"{name}: got {getattr(request, name)}, expected a multiple of {unit} for this model")
    request.alone(len(request.prompts) - 1)  # raises if its seed is too large
    return request


def note_ineffective(model: StableDiffusion, request: Request) -> None:
    """Logs a warning for each field of a resolved request that has no effect on the picture."""
    row = SAMPLERS[cast(str, request.sampler)]
    sigmas = _levels(model, request, row).tolist()
    notes = chain(
        prompt_notes(request),
        guidance_notes(request, sigmas[:-1]),
        sampler_notes(request, row.options),
        start_notes(request, len(sigmas)),
        concept_notes(_unread(model, request)),
    )
    if request.mask_image is not None:
        grey, factor = fit(open_mask(request.mask_image), *_size(request)), model.vae.config.factor
        mask = _black_and_white(grey)
        drawn = bool(_small(mask, factor).any())
        notes = chain(notes, mask_notes(request, grey, mask, drawn, factor))
    for note in notes:
        log.warning(note)


def _unread(model: StableDiffusion, request: Request) -> list[tuple[str, str]]:
    """The words, and their files, that were added to the model's, and that no prompt holds."""
    read = {i for text in (*request.prompts, request.negative_prompt) for i in model.tokenizer.ids(text)}
    first = {concept: model.tokenizer.ids(concept.token)[0] for concept in model.concepts}
    return [(concept.token, concept.said) for concept, i in first.items() if i not in read]


def batches(model: StableDiffusion, request: Request) -> list[Request]:
    """A resolved request cut into what is drawn at once: prompts of one length in tokens, and not too many places."""
    _, h, w = _shape(model, request)
    at_once, prompts = max(1, AT_ONCE // (h * w)), request.prompts
    parts = []
    for _, run in groupby(range(len(prompts)), key=lambda i: _chunks(model, request, prompts[i])):
        rows = list(run)
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            seed = cast(int, request.seed) + some[0]
            parts.append(replace(request, prompt=tuple(prompts[i] for i in some), seed=seed, images=1))
    return parts


@torch.no_grad()
def prepare(model: StableDiffusion, request: Request) -> Plan:
    """From a resolved request to what its sampler needs: text states, noise levels, where to start, what to ask.

    Random numbers are drawn in the order in which diffusers draws them.
    """
    row, shape = SAMPLERS[cast(str, request.sampler)], _shape(model, request)
    init, mask = _pictures(request)
    sigmas = _levels(model, request, row)
    reads_mask = model.unet.config.channels > shape[0]
    from_noise = init is None or (mask is not None and request.strength == 1)
    noise = Noise([cast(int, request.seed) + i for i in range(len(request.prompts))], shape, model.device)
    known = inside = None
    if init is not None and not (reads_mask and from_noise):
        known = model.encode(to_pixels(init)[None], noise() if len(sigmas) > 1 else None)
    n = noise()
    if known is None or from_noise:
        x = n * row.start(cast(str, request.schedule), float(sigmas[0]))
    else:
        x = noised(known, n, sigmas[0])

    network = model.network(request.reuse)
    if reads_mask:
        network = with_channels(network, _mask_channels(model, init, mask, noise))
    denoise = _guided(model, request, network, row)
    if known is not None and mask is not None and not reads_mask:
        noise()  # with which diffusers encodes the masked picture, for U-Nets that read it
        inside = _small(mask, model.vae.config.factor).to(known)
        denoise = masked(denoise, known, inside, n, start=float(sigmas[0]))
    return Plan(request, denoise, x, sigmas, noise, init, mask, known, inside)


def _pictures(request: Request) -> tuple[Image.Image | None, Image.Image | None]:
    """The picture to start from and its mask, of the size that is drawn; the mask is black and white."""
    size = _size(request)
    init = None if request.init_image is None else fit(open_picture(request.init_image), *size)
    mask = None if request.mask_image is None else fit(open_mask(request.mask_image), *size)
    return init, mask and _black_and_white(mask)


def _size(request: Request) -> tuple[int, int]:
    """Width and height in pixels of a resolved request."""
    return cast(int, request.width), cast(int, request.height)


def _black_and_white(mask: Image.Image) -> Image.Image:
    return mask.point(lambda value: 255 * (value >= 128))


def _levels(model: StableDiffusion, request: Request, row: SamplerSpec) -> Tensor:
    """The noise levels of the walk; a strength that is too small for a step leaves one level, 0."""
    sigmas = sampling_sigmas(
        model.schedule, cast(str, request.schedule), cast(int, request.steps), row.final, row.whole_t
    )
    left = sigmas if request.init_image is None else img2img_sigmas(sigmas, request.strength)
    return left if len(left) > 1 else torch.zeros_like(left)


def _guided(model: StableDiffusion, request: Request, network: Network, row: SamplerSpec) -> Denoise:
    """The model's denoiser for these prompts, with classifier-free guidance."""
    prompts = request.prompts
    if len({_chunks(model, request, prompt) for prompt in prompts}) > 1:
        room = model.tokenizer.length - 2
        raise RequestError(f"prompt: those of over {room} tokens and the others cannot share a batch; draw them apart")
    states = model.read([*prompts, request.negative_prompt])
    cond, uncond = states[:-1], states[-1:].expand(len(prompts), -1, -1)
    if request.edit is not None:
        cond = _edited(model, cond, *request.edit)
    denoiser = Denoiser(network, model.schedule, prediction_named(model.prediction), row.whole_t)
    scale = 1.0 if request.guidance_scale in UNGUIDED else cast(float, request.guidance_scale)
    return cfg(denoiser, cond, uncond, scale, request.guidance_rescale, request.guidance_interval)


def _edited(model: StableDiffusion, target: Tensor, path: str, share: float) -> Tensor:
    """Text states between those that were fitted to a picture and those of the prompt.

    Source: Kawar et al., "Imagic" (2210.09276), equation 4.
    """
    states = read_states(path, model.text.config.width).to(target)
    if len(states) != target.shape[1]:
        raise RequestError(f"edit: it was made for a prompt of {len(states)} tokens, this one takes {target.shape[1]}")
    return torch.lerp(states.expand_as(target), target, share)


def _mask_channels(model: StableDiffusion, init: Image.Image | None, mask: Image.Image | None, noise: Noise) -> Tensor:
    """What a nine-channel U-Net reads behind x: the mask, and the latents of the picture, grey where it draws."""
    (_, h, w), factor = noise.shape, model.vae.config.factor
    drawn, pixels = torch.ones(1, 1, h, w), torch.zeros(1, 3, h * factor, w * factor)
    if init is not None and mask is not None:
        drawn, pixels = _small(mask, factor), to_pixels(init)[None] * (torch.from_numpy(np.array(mask)) < 128)
    kept = model.encode(pixels, noise())
    return torch.cat([drawn.to(kept).expand(len(kept), -1, -1, -1), kept], dim=1)


def _small(mask: Image.Image, factor: int) -> Tensor:
    """A mask at the size of latents (1, 1, h, w): 1 where the picture is drawn; as diffusers, by its corner pixels."""
    return torch.from_numpy(np.array(mask)[::factor, ::factor] >= 128)[None, None].float()


def _shape(model: StableDiffusion, request: Request) -> tuple[int, int, int]:
    """Of the latents of one picture."""
    factor = model.vae.config.factor
    return (model.vae.config.latent_channels, cast(int, request.height) // factor, cast(int, request.width) // factor)


def _chunks(model: StableDiffusion, request: Request, prompt: str) -> int:
    """How many chunks of tokens a prompt and its negative prompt take."""
    return max(map(model.tokenizer.chunks_of, (prompt, request.negative_prompt)))


def load(
    source: str | PathLike[str] | None = None,
    *,
    variant: str | None = None,
    prediction: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    engine: str = "auto",
    plain: bool = False,
    low_memory: bool = False,
    tiny: str | PathLike[str] | None = None,
    vae: str | PathLike[str] | None = None,
) -> StableDiffusion:
    """A model, ready to draw: a shipped one, a folder, a file, or an "owner/name" of the hub; None: the shipped one.

    `variant` ("fp16") chooses among a folder's files; `prediction` (eps, v, x0) overrides what was detected; numbers
    are bf16 on a CPU that multiplies in it, fp32 on another and fp16 elsewhere, unless `dtype` (fp32, bf16, fp16) or
    $GRADINA_DTYPE says otherwise; `engine` is one of auto, eager, compile and openvino; `plain` leaves weights in the
    order in which they can learn; with `low_memory` one network at a time is in memory; `tiny` is a tiny decoder for
    previews: a folder, a file, or an "owner/name" (madebyollin/taesd); `vae` is an autoencoder in place of the model's
    own: a safetensors file of it or of a whole checkpoint, a folder, or an "owner/name". Raises WeightsError, HubError
    where the hub does not answer, RequestError for a device that is not there or has no such engine, MissingExtra.
    """
    from gradina.weights.formats.taesd import read_tiny
    from gradina.weights.open import open_source

    place = pick_device(device)
    chosen = pick_engine(engine, place)
    numbers = pick_dtype(dtype, place)
    if low_memory and (place.type != "cpu" or chosen in ("compile", "openvino")):
        raise RequestError(f"low_memory: is for the CPU and engine eager, not for {place} and {chosen}")
    parts = open_source(source, variant=variant, prediction=prediction, vae=vae)
    files = (*parts.files, *parts.vae_files)
    previewer = None if tiny is None else read_tiny(tiny, parts.vae.config)
    convert = partial(in_type, dtype=numbers, mapped=Mapped(*files))
    for network in (previewer,) if low_memory else (parts.text, parts.vae, parts.unet, previewer):
        packs = not plain and (chosen in ("auto", "eager") or network not in (parts.vae, parts.unet))
        if network is not None and place.type == "cpu" and packs:
            prepack(network, convert)
        elif network is not None:
            converted(network, convert).to(place)
    trim_heap()
    return StableDiffusion(
        **{f.name: getattr(parts, f.name) for f in fields(parts)},
        engine=chosen,
        lean=SequentialOffload(numbers, files) if low_memory else None,
        tiny=previewer,
    )


def push(model: StableDiffusion, name: str, *, private: bool = False) -> str:
    """Puts a model on the hub as "owner/name", in the layout of diffusers; its address, or a HubError."""
    from gradina.weights.hub import push as pushed

    return pushed(model, name, private=private)
