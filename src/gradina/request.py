"""Everything that decides a picture, as frozen data shared by the command line, Python and the metadata of files.

It imports nothing heavy, so that a request is built, checked and printed at once.
"""

from __future__ import annotations

import difflib
import os
import secrets
from collections.abc import Callable
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

MAX_PIXELS = 16_800_000  # of a picture that is read or drawn
MAX_SEED = 2**64 - 1  # as torch.manual_seed takes it

Check: TypeAlias = tuple[Callable[[Any], Any], str]  # whether a value is valid, and what is expected of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """The model's values for fields that a request leaves open."""

    steps: int = 20
    guidance_scale: float = 7.5
    sampler: SamplerName = "dpmpp_2m"
    schedule: ScheduleName = "karras"
    width: int = 512
    height: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Everything that decides a picture; a field that is None takes the model's default.

    Raises RequestError, which names the field, its value and what was expected.
    """

    prompt: str | tuple[str, ...] = ""
    negative_prompt: str = ""
    steps: int | None = None
    guidance_scale: float | None = None  # 1 and 0: no guidance; between them: mixed with uncond
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None  # lowest and highest sigma with guidance
    sampler: SamplerName | None = None
    schedule: ScheduleName | None = None
    eta: float | None = None  # fresh noise of a stochastic sampler; None: the sampler's default
    rates: RatesName | None = None  # learning rates of an optimizer sampler; None: levels
    seed: int | None = None  # of the first picture, then seed + 1, ...; None: a random one
    width: int | None = None  # pixels
    height: int | None = None  # pixels
    images: int = 1  # pictures for each prompt
    init_image: ImageLike | None = None
    strength: float = 0.8  # of the noise added to init_image: 0 keeps it, 1 ignores it
    mask_image: ImageLike | None = None  # white is drawn anew, black is kept
    loras: tuple[tuple[str, float], ...] = ()  # files with their scales
    concepts: tuple[str, ...] = ()  # textual inversions, as FILE or WORD=FILE
    edit: tuple[str, float] | None = None  # a file of `gradina imagic`, and the weight of the prompt: 0 is the picture
    reuse: int = 1  # DeepCache: the U-Net's inner part is computed every so many calls; above 1 faster, not exact

    def __post_init__(self) -> None:
        for name in ("prompt", "guidance_interval", "loras", "concepts", "edit"):
            object.__setattr__(self, name, _frozen(getattr(self, name)))
        _check(self)

    @property
    def prompts(self) -> tuple[str, ...]:
        """One prompt for each picture, in the order in which they are drawn."""
        prompts = (self.prompt,) if isinstance(self.prompt, str) else self.prompt
        return tuple(p for p in prompts for _ in range(self.images))

    @property
    def seeds(self) -> range:
        """The seed of each picture, in the same order. Raises RequestError where none is given yet."""
        if self.seed is None:
            raise RequestError("seed: this request has none yet; call resolved() first")
        return range(self.seed, self.seed + len(self.prompts))

    def resolved(self, defaults: Defaults) -> Request:
        """The request with the model's defaults for open fields, and a random seed where it has none."""
        filled = {f.name: getattr(defaults, f.name) for f in fields(defaults) if getattr(self, f.name) is None}
        seed = secrets.randbelow(2**32) if self.seed is None else self.seed
        return replace(self, seed=seed, **filled)

    def alone(self, i: int) -> Request:
        """The request for picture `i` of this one alone, with one prompt, one seed; raises RequestError without one."""
        return replace(self, prompt=self.prompts[i], seed=self.seeds[i], images=1)


def parse_concept(concept: str) -> tuple[str | None, str]:
    """The word, or None, and the file of WORD=FILE or FILE; an existing file whose name has = is a FILE."""
    word, equals, file = concept.partition("=")
    if not equals or "/" in word or "\\" in word or os.path.exists(concept):
        return None, concept
    return word, file


def choice(what: str, got: str, choices: tuple[str, ...]) -> str:
    """`got`, if it is one of `choices`; else raises RequestError, which lists them and suggests the nearest."""
    if got in choices:
        return got
    near = difflib.get_close_matches(str(got), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise RequestError(f"{what}: there is no {got!r}{hint} (choices: {', '.join(choices)})")


def _frozen(value: Any) -> Any:
    """Lists, as in JSON, as tuples, and paths as text."""
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    return str(value) if isinstance(value, PathLike) else value


def _number(low: float, high: float, kind: type = float) -> Check:
    types = int if kind is int else int | float
    what = f"a whole number from {low} to {high}" if kind is int else f"a number from {low:g} to {high:g}"
    return lambda v: isinstance(v, types) and not isinstance(v, bool) and low <= v <= high, what  # NaN is in no range


def _is_texts(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(text, str) for text in value)


def _is_interval(value: Any) -> bool:
    pair = isinstance(value, tuple) and len(value) == 2 and all(isinstance(end, int | float) for end in value)
    return pair and bool(0 <= value[0] <= value[1])


def _is_weighted_file(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and value[0] != ""


_CHECKS: dict[str, Check] = {
    "prompt": (lambda v: isinstance(v, str) or (v and _is_texts(v)), "a text or a list of at least one text"),
    "negative_prompt": (lambda v: isinstance(v, str), "a text"),
    "images": _number(1, 4096, int), "steps": _number(1, 1000, int), "reuse": _number(1, 1000, int),
    "guidance_scale": _number(0, 1000), "guidance_rescale": _number(0, 1), "eta": _number(0, 1),
    "strength": _number(0, 1), "width": _number(8, 8192, int), "height": _number(8, 8192, int),
    "seed": _number(0, MAX_SEED, int),
    "guidance_interval": (_is_interval, "two noise levels (sigma), lowest first"),
    "concepts": (lambda v: _is_texts(v) and all(v), "files of learnt words"),
    "edit": (_is_weighted_file, "a file and a share, such as ('bird.safetensors', 0.7)"),
}  # fmt: skip
_LORA = (_is_weighted_file, "a file and its scale, such as ('bear.safetensors', 0.8)")
_CHOICES = (("sampler", SAMPLER_NAMES), ("schedule", SCHEDULE_NAMES), ("rates", RATES_NAMES))
_OPTIONAL = frozenset(field.name for field in fields(Request) if field.default is None)


def _expect(name: str, value: Any, is_valid: Callable[[Any], Any], expected: str) -> None:
    if not is_valid(value):
        raise RequestError(f"{name}: got {value!r}, expected {expected}")


def _check(r: Request) -> None:
    for name, check in _CHECKS.items():
        if getattr(r, name) is not None or name not in _OPTIONAL:
            _expect(name, getattr(r, name), *check)
    for name, choices in _CHOICES:
        if getattr(r, name) is not None:
            choice(name, getattr(r, name), choices)
    for name in ("width", "height"):
        if (side := getattr(r, name)) and side % 8:
            raise RequestError(f"{name}: got {side}, expected a multiple of 8 (try {side - side % 8 or 8})")
    if r.width and r.height and r.width * r.height > MAX_PIXELS:
        limit = f"{MAX_PIXELS / 1e6:.1f} megapixels"
        raise RequestError(f"width, height: got {r.width} x {r.height}, expected at most {limit}")
    for name in ("init_image", "mask_image"):
        value = getattr(r, name)
        if value is not None and not isinstance(value, (str, PathLike)) and not hasattr(value, "getbbox"):
            raise RequestError(f"{name}: got {type(value).__name__}, expected a path or a PIL image")
    if r.edit is not None:
        _expect("edit: share", r.edit[1], *_number(-2, 3))
    for lora in r.loras if isinstance(r.loras, tuple) else (r.loras,):
        _expect("loras", lora, *_LORA)
        _expect(f"loras: scale of {lora[0]}", lora[1], *_number(-100, 100))
    if r.mask_image is not None and r.init_image is None:
        raise RequestError("mask_image: got a mask without an init_image; give the picture that it masks")
