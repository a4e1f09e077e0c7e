"""A recipe is data: a TOML file that says where pictures come from, what the networks are and how each stage learns."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch

from gradina.diffusion.betas import BetaLaw
from gradina.errors import RecipeError, RequestError, WeightsError
from gradina.models.clip import CLIP, ConvConfig, TextConfig, VisionConfig
from gradina.models.unet import UNet, UNetConfig
from gradina.models.vae import AutoencoderKL, VAEConfig
from gradina.request import Defaults, Request
from gradina.texts import read_text
from gradina.training.loop import Settings

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class IconsRecipe:
    """Which icons are drawn, and how they are put into pictures."""

    styles: tuple[str, ...]  # names of the icon sets to draw in, one for each package
    more_styles: tuple[str, ...] = ()  # of further packages, which the contrastive pair alone sees
    count: int  # how many of the things
    things: tuple[str, ...]  # the most everyday first; behind commas, other words for them
    size: int = 128  # pixels
    variants: int = 16  # pictures of each icon
    scenes: float = 0.1  # share of pictures with two things
    smallest: float = 0.7  # side of a thing alone, as a share of the picture's


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Where the pictures come from."""

    source: str
    packages: tuple[str, ...] = ()  # on npm, that hold them
    folders: tuple[str, ...] = ()  # here, that hold them: instead of the packages
    icons: IconsRecipe | None = None  # for the source "icons"


@dataclass(frozen=True, kw_only=True)
class VocabularyRecipe:
    """The model's own byte-pair vocabulary."""

    size: int  # tokens
    length: int  # tokens of a prompt, with its start and end


@dataclass(frozen=True, kw_only=True)
class VAEPhase(Settings):
    """How the autoencoder learns for a while; the next phase goes on from the averaged weights."""

    resized: float = 0.0  # share of batches whose latents are made smaller, to give a smaller picture
    only: Literal["decoder"] | None = None  # the half that learns: then latents stay what they are; None: both


@dataclass(frozen=True, kw_only=True)
class VAERecipe:
    """The first stage, in one phase or in several."""

    network: VAEConfig
    training: tuple[VAEPhase, ...]
    kl_weight: float = 1e-6
    crop: int | None = None  # pixels: learn from random squares of pictures, which is quicker


@dataclass(frozen=True, kw_only=True)
class CLIPRecipe:
    """The second stage."""

    text: TextConfig
    vision: VisionConfig
    training: Settings
    turned: float = 0.0  # degrees: pictures are turned, stretched and tinted a little, each time otherwise
    kept: float = 1.0  # share of a picture's patches that are looked at, each time others: half is twice as quick
    naming: bool = False  # whether each picture has also to find its name among all that there are


@dataclass(frozen=True, kw_only=True)
class WordsRecipe:
    """The text tower learns what its words look like, from a small stand-in for the U-Net."""

    training: Settings
    width: int = 256
    layers: int = 2
    heads: int = 8


@dataclass(frozen=True, kw_only=True)
class VisionRecipe:
    """A last stage: an image tower to go with the model learns, while words are what the U-Net reads."""

    training: Settings
    network: VisionConfig | ConvConfig | None = None  # of a tower that begins anew; None: the pair's learns on
    packages: tuple[str, ...] = ()  # further ones, on npm
    folders: tuple[str, ...] = ()  # further ones, here
    styles: tuple[str, ...] = ()  # their names
    turned: float = 0.0  # degrees, as for the pair; what is shown alone
    kept: float = 1.0  # share of places, as for the pair


@dataclass(frozen=True, kw_only=True)
class UNetPhase(Settings):
    """How the U-Net learns for a while; the next phase goes on from the averaged weights."""

    pixels: int | None = None  # side of the pictures; None: as they are
    text_rate: float = 0.0  # share of the learning rate at which the text tower learns, too
    smallest: float | None = None  # of composed pictures: side of a thing alone; None: as in the data
    places: float | None = None  # and how far from the middle, as a share of the side
    home: str | None = None  # of composed pictures: the style that is meant where none is named; None: any
    shift: float | None = None  # noise levels are so many times as high: there words decide; None: as they are
    things: int | None = None  # of composed pictures: those that show the first so many of the things; None: all


@dataclass(frozen=True, kw_only=True)
class UNetRecipe:
    """The third stage, in one phase or in several."""

    network: UNetConfig
    training: tuple[UNetPhase, ...]
    prediction: Literal["eps", "v", "x0"] = "eps"
    caption_dropout: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything to make a model again."""

    name: str
    description: str = ""
    seed: int = 0
    license: str = "apache-2.0"
    data: DataRecipe
    vocabulary: VocabularyRecipe
    vae: VAERecipe
    clip: CLIPRecipe
    unet: UNetRecipe
    words: WordsRecipe | None = None  # before the U-Net
    vision: VisionRecipe | None = None  # after it
    schedule: BetaLaw = BetaLaw()  # noqa: RUF009 (frozen)
    defaults: Defaults
    prompts: tuple[str, ...] = ()  # of the sample grids
    sample_every: int = 1000  # steps between sample grids
    snapshots: bool = False  # whether averaged weights are kept beside every sample grid
    checkpoint_every: float = 60.0  # seconds between checkpoints

    @property
    def drawn(self) -> Recipe:
        """The same with no more things than its U-Net draws in the end."""
        icons, things = self.data.icons, self.unet.training[-1].things
        if icons is None or things is None:
            return self
        return replace(self, data=replace(self.data, icons=replace(icons, count=things)))


@dataclass(frozen=True)
class Planned:
    """A stage as a recipe plans it: a part learns, perhaps in several phases."""

    part: Literal["vae", "clip", "words", "unet", "vision"]
    settings: Settings
    phase: int = 0  # counts from 0

    @property
    def name(self) -> str:
        """That of its folder: after "unet" comes "unet-2"."""
        return f"{self.part}-{self.phase + 1}" if self.phase else self.part


def plan(recipe: Recipe) -> dict[str, Planned]:
    """The stages of a recipe, by name, in their order."""
    stages = [Planned("vae", settings, phase) for phase, settings in enumerate(recipe.vae.training)]
    stages += [Planned("clip", recipe.clip.training)]
    stages += [Planned("words", recipe.words.training)] if recipe.words else []
    stages += [Planned("unet", settings, phase) for phase, settings in enumerate(recipe.unet.training)]
    stages += [Planned("vision", recipe.vision.training)] if recipe.vision else []
    return {stage.name: stage for stage in stages}


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a TOML file; RecipeError names the key that is wrong, what was got and what was expected."""
    if not Path(path).exists():
        raise RecipeError(f"{path}: there is no such recipe")
    try:
        table = tomllib.loads(read_text(path, RecipeError))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not a TOML file ({error})") from error
    except RecursionError:
        raise RecipeError(f"{path}: not a TOML file (it is nested too deep)") from None
    try:
        recipe = _build(Recipe, table, "")
        check(recipe)
    except (RecipeError, RequestError, WeightsError) as error:
        raise RecipeError(f"{path}: {error}") from None
    return recipe


def check(recipe: Recipe) -> None:
    """Refuses what could not be trained, before anything is: numbers out of range, networks that cannot be built."""
    Request(**asdict(recipe.defaults))
    recipe.schedule.betas()
    if recipe.defaults.steps > recipe.schedule.num_train_timesteps:
        raise RecipeError(f"defaults.steps: got {recipe.defaults.steps}, more than the schedule has")
    if recipe.sample_every < 1:
        raise RecipeError(f"sample_every: got {recipe.sample_every}, expected more than 0")
    if not 0 <= recipe.unet.caption_dropout <= 1:
        raise RecipeError(f"unet.caption_dropout: got {recipe.unet.caption_dropout}, expected 0 to 1")
    if recipe.vocabulary.size < 514 or recipe.vocabulary.length < 3:
        raise RecipeError("vocabulary: expected a size of 514 tokens or more, and a length of 3 or more")
    for part, phases in (("vae", recipe.vae.training), ("unet", recipe.unet.training)):
        if not phases:
            raise RecipeError(f"{part}.training: got no phase, expected at least one")
    for learning in recipe.vae.training:
        if not 0 <= learning.resized <= 1:
            raise RecipeError(f"vae.training.resized: got {learning.resized}, expected 0 to 1")
    if recipe.vae.training[0].only:
        raise RecipeError("vae.training.only: in the first phase both halves have to learn")
    unet, step = recipe.unet.network, recipe.vae.network.factor
    for phase in recipe.unet.training:
        if not 0 <= phase.text_rate <= 1:
            raise RecipeError(f"unet.training.text_rate: got {phase.text_rate}, expected 0 to 1")
        if (phase.smallest, phase.places) != (None, None) and recipe.data.icons is None:
            raise RecipeError("unet.training.smallest, places: are for pictures that are composed of icons")
        if phase.home is not None and phase.home not in (recipe.data.icons.styles if recipe.data.icons else ()):
            raise RecipeError(f"unet.training.home: got {phase.home!r}, expected one of the styles of data.icons")
        most = recipe.data.icons.count if recipe.data.icons else 0
        if phase.things is not None and not 1 <= phase.things <= most:
            raise RecipeError(f"unet.training.things: got {phase.things}, expected 1 to {most}, those of data.icons")
        if phase.shift is not None and not phase.shift > 0:
            raise RecipeError(f"unet.training.shift: got {phase.shift}, expected more than 0")
        if phase.pixels is not None and (phase.pixels < step or phase.pixels % step):
            raise RecipeError(f"unet.training.pixels: got {phase.pixels}, expected a multiple of {step}")
    words = recipe.words
    if words and not (words.layers > 0 < words.heads <= words.width and words.width % words.heads == 0):
        raise RecipeError(
            f"words.width: got {words.width}, expected a multiple of heads, {words.heads}; layers above 0"
        )
    own = recipe.vision and recipe.vision.network
    if own and own.projection != recipe.clip.text.projection:
        expected = recipe.clip.text.projection
        raise RecipeError(f"vision.network.projection: got {own.projection}, expected {expected}, as the text's")
    if not len(unet.widths) == len(unet.attention) == len(unet.heads) > 0:
        raise RecipeError("unet.network: expected as many widths as entries of attention and heads, at least one")
    if any(width % heads for width, heads in zip(unet.widths, unet.heads, strict=True)):
        raise RecipeError(f"unet.network.heads: got {list(unet.heads)}, expected divisors of {list(unet.widths)}")
    for name, make in (
        ("vae.network", lambda: AutoencoderKL(recipe.vae.network)),
        ("clip", lambda: CLIP(recipe.clip.text, recipe.clip.vision)),
        ("vision", lambda: CLIP(recipe.clip.text, own or recipe.clip.vision)),
        ("unet.network", lambda: UNet(unet)),
    ):
        try:
            with torch.device("meta"):
                make()
        except (ValueError, IndexError, ZeroDivisionError, RuntimeError) as error:
            raise RecipeError(f"{name}: cannot be built ({error})") from error


def _build(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """An instance of a dataclass from a TOML table, strictly."""
    hints, known = get_type_hints(kind), {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    unknown = [k for k in table if k not in known]
    if unknown:
        raise RecipeError(f"there is no {where}{unknown[0]} (known here: {', '.join(known)})")
    missing = [n for n, f in known.items() if n not in table and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise RecipeError(f"{where}{missing[0]} is missing")
    values = {name: _value(hints[name], value, where + name) for name, value in table.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise RecipeError(f"{where}{error}") from None


def _names(kind: Any) -> set[str]:
    return {field.name for field in fields(kind)}


def _value(hint: Any, value: Any, where: str) -> Any:
    """A TOML value as the type that a field asks for."""
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise RecipeError(f"{where}: got {value!r}, expected a table")
        return _build(hint, value, where + ".")
    choices = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        kinds = [c for c in choices if c is not type(None)]
        fits = [c for c in kinds if isinstance(value, dict) and is_dataclass(c) and value.keys() <= _names(c)]
        return _value((fits or kinds)[0], value, where)
    if get_origin(hint) is tuple and isinstance(value, dict) and is_dataclass(choices[0]):  # a list of one
        return (_value(choices[0], value, where),)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_value(choices[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if isinstance(hint, type) and get_origin(hint) is None:
        good = isinstance(value, (int, float) if hint is float else hint)
        if not good or (isinstance(value, bool) and hint is not bool):
            raise RecipeError(f"{where}: got {value!r}, expected {hint.__name__}")
        return float(value) if hint is float else value
    if choices and get_origin(hint) is not tuple and value not in choices:
        raise RecipeError(f"{where}: got {value!r}, expected one of {', '.join(map(str, choices))}")
    if get_origin(hint) is tuple:
        raise RecipeError(f"{where}: got {value!r}, expected a list")
    return value
