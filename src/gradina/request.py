"""Everything that decides a picture, as frozen data shared by the command line, Python and the metadata of files.

It imports nothing heavy, so that a request is built, checked and printed at once.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, fields, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from gradina.errors import RequestError
from gradina.request_checks import check_request

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
        check_request(self, {"sampler": SAMPLER_NAMES, "schedule": SCHEDULE_NAMES, "rates": RATES_NAMES})

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


def _frozen(value: Any) -> Any:
    """Lists, as in JSON, as tuples, and paths as text."""
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    return str(value) if isinstance(value, PathLike) else value
