"""What decides a picture, as frozen data: one Request stands behind the command line, Python and a file's metadata.

Nothing heavy is imported here, so that a face can build, check and print a request at once.
"""

from __future__ import annotations

import difflib
import os
import secrets
from dataclasses import dataclass, fields, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from gradina.errors import RequestError

if TYPE_CHECKING:
    from PIL import Image

    ImageLike: TypeAlias = Image.Image | str | PathLike[str]

SamplerName = Literal[
    "ddpm", "ddim", "pndm", "lms", "euler", "euler_ancestral", "heun",
    "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "unipc", "sgd", "momentum", "nesterov", "adam",
]  # fmt: skip
ScheduleName = Literal["leading", "linspace", "trailing", "karras", "exponential", "sgm_uniform", "beta", "ays"]
RatesName = Literal["levels", "constant", "proportional", "cosine"]
SAMPLER_NAMES: tuple[str, ...] = get_args(SamplerName)
SCHEDULE_NAMES: tuple[str, ...] = get_args(ScheduleName)
RATES_NAMES: tuple[str, ...] = get_args(RatesName)

MAX_PIXELS = 16_800_000  # of a picture, read or drawn
MAX_SEED = 2**64 - 1  # as torch.manual_seed takes it


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a model draws with where a request leaves a field open."""

    steps: int = 20
    guidance_scale: float = 7.5
    sampler: SamplerName = "dpmpp_2m"
    schedule: ScheduleName = "karras"
    width: int = 512
    height: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Everything that decides a picture; a field that is None takes the model's own default.

    Raises RequestError, naming the field, what was got and what was expected.
    """

    prompt: str | tuple[str, ...] = ""
    negative_prompt: str = ""
    steps: int | None = None
    guidance_scale: float | None = None  # above 1 it guides; 1 and 0: the prompt alone; between: mixed with uncond
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None  # sigma, lowest and highest at which guidance acts
    sampler: SamplerName | None = None
    schedule: ScheduleName | None = None
    eta: float | None = None  # noise put back by a stochastic sampler; None: the sampler's own
    rates: RatesName | None = None  # how far an optimizer among the samplers goes each time; None: levels
    seed: int | None = None  # of the first picture; the next ones take seed + 1, ...; None: a new one each time
    width: int | None = None  # pixels
    height: int | None = None  # pixels
    images: int = 1  # pictures for each prompt
    init_image: ImageLike | None = None
    strength: float = 0.8  # of the noise put over init_image: 0 keeps it, 1 forgets it
    mask_image: ImageLike | None = None  # white is drawn anew, black is kept
    loras: tuple[tuple[str, float], ...] = ()  # files of LoRAs, each with its scale
    concepts: tuple[str, ...] = ()  # files of words that were learnt by textual inversion, as FILE or WORD=FILE
    edit: tuple[str, float] | None = None  # a file of `gradina imagic`, and the share of the prompt: 0 is the picture
    reuse: int = 1  # the U-Net's inner part is computed at every so many calls; above 1 it is quicker, and not exact

    def __post_init__(self) -> None:
        for name in ("prompt", "guidance_interval", "loras", "concepts", "edit"):
            object.__setattr__(self, name, _frozen(getattr(self, name)))
        _check(self)

    @property
    def prompts(self) -> tuple[str, ...]:
        """One prompt for each picture, in the order in which they are drawn."""
        each = (self.prompt,) if isinstance(self.prompt, str) else self.prompt
        return tuple(p for p in each for _ in range(self.images))

    @property
    def seeds(self) -> range:
        """The seed of each picture, in the same order. Raises RequestError where none is given yet."""
        if self.seed is None:
            raise RequestError("seed: this request has none yet; call resolved() first")
        return range(self.seed, self.seed + len(self.prompts))

    def resolved(self, defaults: Defaults) -> Request:
        """The same request with no field left open: the model's defaults, and a seed if none was given."""
        open_fields = {f.name: getattr(defaults, f.name) for f in fields(defaults) if getattr(self, f.name) is None}
        seed = secrets.randbelow(2**32) if self.seed is None else self.seed
        return replace(self, seed=seed, **open_fields)

    def alone(self, i: int) -> Request:
        """The request that draws picture `i` of this one alone: one prompt, one seed."""
        return replace(self, prompt=self.prompts[i], seed=self.seeds[i], images=1)


def word_and_file(concept: str) -> tuple[str | None, str]:
    """The word that is asked for, if one is, and the file, of WORD=FILE or FILE; a file whose name has = is a FILE."""
    word, equals, file = concept.partition("=")
    if not equals or "/" in word or "\\" in word or os.path.exists(concept):
        return None, concept
    return word, file


def choice(what: str, got: str, choices: tuple[str, ...]) -> str:
    """`got`, if it is one of `choices`; else a RequestError that lists them and guesses what was meant."""
    if got in choices:
        return got
    near = difflib.get_close_matches(str(got), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise RequestError(f"{what}: there is no {got!r}{hint} (choices: {', '.join(choices)})")


def _frozen(value: Any) -> Any:
    """Lists, as JSON has them, as tuples, and paths as text."""
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    return str(value) if isinstance(value, PathLike) else value


def _number(name: str, value: Any, low: float, high: float, kind: type = float) -> None:
    right_kind = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not right_kind or not low <= value <= high:  # neither NaN nor infinity lies between
        what = f"a whole number from {low} to {high}" if kind is int else f"a number from {low:g} to {high:g}"
        raise RequestError(f"{name}: got {value!r}, expected {what}")


def _check(r: Request) -> None:
    each = (r.prompt,) if isinstance(r.prompt, str) else r.prompt
    if not isinstance(each, tuple) or not each or not all(isinstance(p, str) for p in each):
        raise RequestError(f"prompt: got {r.prompt!r}, expected a text or a list of at least one text")
    if not isinstance(r.negative_prompt, str):
        raise RequestError(f"negative_prompt: got {r.negative_prompt!r}, expected a text")
    _number("images", r.images, 1, 4096, int)
    _number("reuse", r.reuse, 1, 1000, int)
    for name, low, high, kind in (
        ("steps", 1, 1000, int), ("guidance_scale", 0, 1000, float), ("eta", 0, 1, float),
        ("seed", 0, MAX_SEED, int), ("width", 8, 8192, int), ("height", 8, 8192, int),
    ):  # fmt: skip
        value = getattr(r, name)
        if value is not None:
            _number(name, value, low, high, kind)
        if name in ("width", "height") and value is not None and value % 8:
            raise RequestError(f"{name}: got {value}, expected a multiple of 8 (try {value - value % 8 or 8})")
    if r.width and r.height and r.width * r.height > MAX_PIXELS:
        raise RequestError(
            f"width, height: got {r.width} x {r.height}, expected at most {MAX_PIXELS / 1e6:.1f} megapixels"
        )
    for name in ("init_image", "mask_image"):
        value = getattr(r, name)
        if value is not None and not isinstance(value, (str, PathLike)) and not hasattr(value, "getbbox"):
            raise RequestError(f"{name}: got {type(value).__name__}, expected a path or a PIL image")
    _number("guidance_rescale", r.guidance_rescale, 0, 1)
    _number("strength", r.strength, 0, 1)
    if r.sampler is not None:
        choice("sampler", r.sampler, SAMPLER_NAMES)
    if r.schedule is not None:
        choice("schedule", r.schedule, SCHEDULE_NAMES)
    if r.rates is not None:
        choice("rates", r.rates, RATES_NAMES)
    if r.guidance_interval is not None:
        ends = r.guidance_interval
        pair = isinstance(ends, tuple) and len(ends) == 2 and all(isinstance(end, int | float) for end in ends)
        if not pair or not 0 <= ends[0] <= ends[1]:
            raise RequestError(f"guidance_interval: got {ends!r}, expected two noise levels (sigma), lowest first")
    if not isinstance(r.concepts, tuple) or not all(isinstance(one, str) and one for one in r.concepts):
        raise RequestError(f"concepts: got {r.concepts!r}, expected files of learnt words")
    if r.edit is not None:
        if not isinstance(r.edit, tuple) or len(r.edit) != 2 or not isinstance(r.edit[0], str):
            raise RequestError(f"edit: got {r.edit!r}, expected a file and a share, such as ('bird.safetensors', 0.7)")
        _number("edit: share", r.edit[1], -2, 3)
    for one in r.loras if isinstance(r.loras, tuple) else (r.loras,):
        if not isinstance(one, tuple) or len(one) != 2 or not isinstance(one[0], str) or not one[0]:
            raise RequestError(f"loras: got {one!r}, expected a file and its scale, such as ('bear.safetensors', 0.8)")
        _number(f"loras: scale of {one[0]}", one[1], -100, 100)
    if r.mask_image is not None and r.init_image is None:
        raise RequestError("mask_image: got a mask without an init_image; give the picture that it masks")
