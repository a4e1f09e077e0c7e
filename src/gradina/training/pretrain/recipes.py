"""A recipe is a TOML file: where pictures come from, the shapes of the networks, and how each stage is trained."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch

from gradina.diffusion.betas import BetaLaw
from gradina.diffusion.schedule import Schedule
from gradina.errors import RecipeError, RequestError, WeightsError
from gradina.models.clip import TextConfig
from gradina.models.clip_vision import CLIP, ConvConfig, VisionConfig
from gradina.models.unet import UNet, UNetConfig
from gradina.models.vae import AutoencoderKL, VAEConfig
from gradina.request import Defaults, Request
from gradina.texts import read_text
from gradina.training.losses import noise_levels
from gradina.training.settings import MORE_THAN_0, POSITIVE, SHARE, Checked, NoiseLaw, Settings

T = TypeVar("T")
COMPOSITION = ("smallest", "largest", "jitter", "scenes", "one_style", "variants", "every_background")
FORMER_KEYS = {  # which are still read, by the keys that stand in their place
    "text_encoder": "words", "image_encoder": "vision", "rotation": "turned", "kept_patches": "kept",
    "classification": "naming", "jitter": "places", "default_style": "home", "classes": "things",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class IconsRecipe:
    """Which icons are drawn, and how they are put into pictures."""

    styles: tuple[str, ...]  # names of the icon sets to draw in, one for each package
    more_styles: tuple[str, ...] = ()  # of further packages, which the contrastive pair alone sees
    count: int  # only the first so many
    things: tuple[str, ...]  # the most everyday first; behind commas, other words for them
    size: int = 128  # pixels
    variants: int = 16  # pictures of each icon
    scenes: float = 0.1  # share of pictures of two things
    smallest: float = 0.7  # side of a single thing, as a share of the picture's


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Where the pictures come from."""

    source: str
    packages: tuple[str, ...] = ()  # on npm, that hold them
    folders: tuple[str, ...] = ()  # here, that hold them: instead of the packages
    icons: IconsRecipe | None = None  # for the source "icons"


@dataclass(frozen=True, kw_only=True)
class VocabularyRecipe:
    """The byte-pair vocabulary."""

    size: int  # tokens
    length: int  # tokens of a prompt, with its start and end


@dataclass(frozen=True, kw_only=True)
class VAEPhase(Settings):
    """A phase of training the autoencoder; the next one continues from the averaged weights."""

    resized: Annotated[float, SHARE] = 0.0  # share of batches whose latents are resized to decode a smaller picture
    only: Literal["decoder"] | None = None  # the trained half; None: both. Latents do not change with the decoder


@dataclass(frozen=True, kw_only=True)
class VAERecipe:
    """The first stage, in one phase or in several."""

    network: VAEConfig
    training: tuple[VAEPhase, ...]
    kl_weight: float = 1e-6
    crop: int | None = None  # pixels: side of random crops, which are quicker than whole pictures


@dataclass(frozen=True, kw_only=True)
class CLIPRecipe:
    """The second stage."""

    text: TextConfig
    vision: VisionConfig
    training: Settings
    rotation: float = 0.0  # degrees, at most: augmentation by random rotation, stretching and tint
    kept_patches: float = 1.0  # random share of a picture's patches that the tower sees: 0.5 is twice as fast
    classification: bool = False  # adds a loss: the name of each picture's class, among all names


@dataclass(frozen=True, kw_only=True)
class TextEncoderRecipe:
    """The text tower is pretrained by latent prediction, with a small decoder in place of the U-Net."""

    training: Settings
    width: int = 256
    layers: int = 2
    heads: int = 8


@dataclass(frozen=True, kw_only=True)
class ImageEncoderRecipe:
    """A last stage: an image tower is trained against the U-Net's text tower."""

    training: Settings
    network: VisionConfig | ConvConfig | None = None  # of a new tower; None: the pair's is trained on
    packages: tuple[str, ...] = ()  # further ones, on npm
    folders: tuple[str, ...] = ()  # further ones, here
    styles: tuple[str, ...] = ()  # their names
    rotation: float = 0.0  # degrees, as for the pair; of the icons, not of their grounds
    kept_patches: float = 1.0  # as for the pair


@dataclass(frozen=True, kw_only=True)
class UNetPhase(Settings, NoiseLaw):
    """A phase of training the U-Net; the next one continues from the averaged weights."""

    pixels: int | None = None  # side of the pictures; None: as they are
    text_rate: Annotated[float, SHARE] = 0.0  # factor of the learning rate for the text tower; 0: it is frozen
    # of synthetic pictures; None: as in the data
    smallest: Annotated[float | None, SHARE] = None  # side of a single icon, as a share of the picture's
    largest: Annotated[float | None, SHARE] = None
    jitter: float | None = None  # largest distance from the centre, as a share of the side
    scenes: Annotated[float | None, SHARE] = None  # share of pictures of two things
    one_style: bool | None = None  # whether these are in the same style
    variants: Annotated[int | None, POSITIVE] = None  # pictures of each icon
    every_background: bool | None = None  # on each background, and the rest on white; None: on random ones
    default_style: str | None = None  # meant by captions that name no style; None: any
    classes: int | None = None  # only pictures of the first so many classes; None: all

    @property
    def composition(self) -> dict[str, Any]:
        """The fields that decide synthetic pictures, where they differ from the data's."""
        values = {name: getattr(self, name) for name in COMPOSITION}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class UNetRecipe(Checked):
    """The third stage, in one phase or in several."""

    network: UNetConfig
    training: tuple[UNetPhase, ...]
    prediction: Literal["eps", "v", "x0"] = "eps"
    caption_dropout: Annotated[float, SHARE] = 0.1


@dataclass(frozen=True, kw_only=True)
class DecoderPhase(Settings, NoiseLaw):
    """The decoder is trained on what the U-Net predicts, at noise levels drawn by the law."""

    clean: Annotated[float, SHARE] = 0.25  # share of latents that are those of the pictures themselves


@dataclass(frozen=True, kw_only=True)
class DecoderRecipe:
    """After the U-Net, whose latents and text tower do not change."""

    training: DecoderPhase


@dataclass(frozen=True, kw_only=True)
class Recipe(Checked):
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
    text_encoder: TextEncoderRecipe | None = None  # before the U-Net
    decoder: DecoderRecipe | None = None  # after it
    image_encoder: ImageEncoderRecipe | None = None  # at last
    schedule: BetaLaw = BetaLaw()  # noqa: RUF009 (frozen)
    defaults: Defaults
    prompts: tuple[str, ...] = ()  # of the sample sheets
    sample_every: Annotated[int, MORE_THAN_0] = 1000  # steps between sample sheets
    snapshots: bool = False  # whether averaged weights are kept with every sample sheet
    checkpoint_every: float = 60.0  # seconds between checkpoints

    @property
    def drawn(self) -> Recipe:
        """The recipe with only the classes that its U-Net draws in the end."""
        icons, classes = self.data.icons, self.unet.training[-1].classes
        if icons is None or classes is None:
            return self
        return replace(self, data=replace(self.data, icons=replace(icons, count=classes)))

    @property
    def with_image_encoder_data(self) -> Recipe:
        """The recipe with the further packages of the last stage."""
        data, encoder = self.data, self.image_encoder
        if encoder is None:
            return self
        icons = data.icons and replace(data.icons, more_styles=data.icons.more_styles + encoder.styles)
        packages, folders = data.packages + encoder.packages, data.folders + encoder.folders
        return replace(self, data=replace(data, packages=packages, folders=folders, icons=icons))


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
    """Refuses what cannot be trained, before anything is: sections that contradict each other, impossible networks."""
    Request(**asdict(recipe.defaults))
    schedule = Schedule.from_betas(recipe.schedule.betas())
    expect(
        recipe.defaults.steps <= len(schedule.sigmas),
        f"defaults.steps: got {recipe.defaults.steps}, more than the schedule has",
    )
    vocabulary, text = recipe.vocabulary, recipe.text_encoder
    large = vocabulary.size >= 514 and vocabulary.length >= 3
    expect(large, "vocabulary: expected a size of 514 tokens or more, and a length of 3 or more")
    for part, phases in (("vae", recipe.vae.training), ("unet", recipe.unet.training)):
        expect(phases, f"{part}.training: got no phase, expected at least one")
    expect(not recipe.vae.training[0].only, "vae.training.only: in the first phase both halves have to be trained")
    unet = recipe.unet.network
    for phase in recipe.unet.training:
        check_phase(recipe, phase, schedule)
    if recipe.decoder:
        law = recipe.decoder.training
        noise_levels(schedule, law)
        unused = law.noise_offset or law.min_snr
        expect(not unused, "decoder.training.noise_offset, min_snr: the decoder's losses have none; leave them out")
    if text:
        fits = text.layers > 0 < text.heads <= text.width and text.width % text.heads == 0
        got = f"text_encoder.width: got {text.width}"
        expect(fits, f"{got}, expected a multiple of heads, {text.heads}; layers above 0")
    tower, projection = recipe.image_encoder and recipe.image_encoder.network, recipe.clip.text.projection
    if tower:
        got = f"image_encoder.network.projection: got {tower.projection}"
        expect(tower.projection == projection, f"{got}, expected {projection}, as the text's")
    shape = "unet.network: expected as many widths as entries of attention and heads, at least one"
    expect(len(unet.widths) == len(unet.attention) == len(unet.heads) > 0, shape)
    divide = all(width % heads == 0 for width, heads in zip(unet.widths, unet.heads, strict=True))
    expect(divide, f"unet.network.heads: got {list(unet.heads)}, expected divisors of {list(unet.widths)}")
    for name, make in (
        ("vae.network", lambda: AutoencoderKL(recipe.vae.network)),
        ("clip", lambda: CLIP(recipe.clip.text, recipe.clip.vision)),
        ("image_encoder", lambda: CLIP(recipe.clip.text, tower or recipe.clip.vision)),
        ("unet.network", lambda: UNet(unet)),
    ):
        try:
            with torch.device("meta"):
                make()
        except (ValueError, IndexError, ZeroDivisionError, RuntimeError) as error:
            raise RecipeError(f"{name}: cannot be built ({error})") from error


def check_phase(recipe: Recipe, phase: UNetPhase, schedule: Schedule) -> None:
    """Refuses a phase of the U-Net that asks for what the recipe's data, autoencoder or schedule do not have."""
    at, icons, factor = "unet.training", recipe.data.icons, recipe.vae.network.factor
    style, classes, pixels = phase.default_style, phase.classes, phase.pixels
    names = ", ".join(phase.composition)
    expect(icons or not names, f"{at}.{names}: for pictures that are composed of icons alone")
    known = style in (None, *(icons.styles if icons else ()))
    expect(known, f"{at}.default_style: got {style!r}, expected one of the styles of data.icons")
    most = icons.count if icons else 0
    some = classes is None or 1 <= classes <= most
    expect(some, f"{at}.classes: got {classes}, expected 1 to {most}, those of data.icons")
    whole = pixels is None or (pixels >= factor and pixels % factor == 0)
    expect(whole, f"{at}.pixels: got {pixels}, expected a multiple of {factor}")
    smallest, largest = phase.smallest or (icons.smallest if icons else 0), phase.largest
    sizes = largest is None or smallest <= largest
    expect(sizes, f"{at}.largest: got {largest}, expected at least the smallest, {smallest}")
    noise_levels(schedule, phase)


def expect(holds: object, message: str) -> None:
    """Raises RecipeError with the message unless it holds."""
    if not holds:
        raise RecipeError(message)


def _fields(kind: Any) -> dict[str, Field[Any]]:
    """The fields of a dataclass by their names: the keys in TOML."""
    return {f.name: f for f in fields(kind)}


def _renamed(table: Mapping[str, Any], known: Collection[str], where: str) -> Mapping[str, Any]:
    """The table with the keys that stand in the place of former ones."""
    renamed = {former: key for key, former in FORMER_KEYS.items() if key in known and former not in known}
    both = [(former, key) for former, key in renamed.items() if former in table and key in table]
    if both:
        former, key = both[0]
        raise RecipeError(f"{where}{key}: given twice, also by its former key, {former}")
    return {renamed.get(key, key): value for key, value in table.items()}


def _build(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """An instance of a dataclass from a TOML table, strictly."""
    hints, known = get_type_hints(kind), _fields(kind)
    table = _renamed(table, known, where)
    unknown = [k for k in table if k not in known]
    if unknown:
        raise RecipeError(f"there is no {where}{unknown[0]} (known here: {', '.join(known)})")
    missing = [n for n, f in known.items() if n not in table and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise RecipeError(f"{where}{missing[0]} is missing")
    values = {key: _value(hints[key], value, where + key) for key, value in table.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise RecipeError(f"{where}{error}") from None


def _value(hint: Any, value: Any, where: str) -> Any:
    """A TOML value as the type that a field asks for."""
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise RecipeError(f"{where}: got {value!r}, expected a table")
        return _build(hint, value, where + ".")
    choices = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        kinds = [c for c in choices if c is not type(None)]
        fits = [c for c in kinds if isinstance(value, dict) and is_dataclass(c) and value.keys() <= _fields(c).keys()]
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
