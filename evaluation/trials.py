"""What is asked of a model of emoji-like pictures: each trial gives figures, and most a sheet of pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from judges import SEED, every_icon, ground_of, judge_of_textures, judge_of_things, line_up, seen
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import gradina
from gradina.images import grid
from gradina.pipeline.model import StableDiffusion, to_image, to_pixels
from gradina.tasks import retrieval
from gradina.tasks.metrics import psnr
from gradina.training.data.dataset import Split, generator
from gradina.training.data.icons import Icons, with_article
from gradina.training.data.sources import load_dataset
from gradina.training.data.synthetic import BACKGROUND_NAMES, RELATIONS, IconScenes, pair_centres
from gradina.training.pretrain.recipes import Recipe

SCALES = (1.0, 3.0, 7.5, 14.0)
MANY = 50  # steps, as the first pictures of Stable Diffusion were drawn
OF_MANY: dict[str, Any] = {"sampler": "ddim", "steps": MANY}
NEAR = 0.52  # of the side: what is cut out around each of two things

Figures = dict[str, Any]


@dataclass(frozen=True)
class Court:
    """The model, what it learnt from and has not seen, and who judges it."""

    model: StableDiffusion
    recipe: Recipe
    trained: IconScenes
    held: IconScenes
    things: nn.Module
    textures: nn.Module

    def call(self, thing: int) -> str:
        """What a thing is called first."""
        return self.trained.words.wordings[thing][0]

    @cached_property
    def icons(self) -> Icons:
        """Every icon of its things in its styles, held out or not."""
        return all_icons(self.trained, self.held)

    def styles(self, pixels: Tensor, things: Tensor, grounds: Tensor) -> Tensor:
        """The style of each picture, of a known thing on a known ground."""
        return line_up(pixels, things, grounds, self.icons)

    def through_latents(self, pixels: Tensor) -> Tensor:
        """Pixels (n, 3, h, w) as the model's autoencoder gives them back."""
        parts = torch.split(pixels, 32)
        return torch.stack([to_pixels(image) for part in parts for image in self.model.decode(self.model.encode(part))])

    def draw(self, prompts: Sequence[str], seed: int = SEED, **fields: Any) -> Tensor:
        """One picture for each prompt, as pixels (n, 3, h, w)."""
        request = gradina.Request(prompt=tuple(prompts), seed=seed, **fields)
        return torch.stack([to_pixels(picture.image) for picture in gradina.generate(self.model, request)])


def court_of(model: StableDiffusion, whole: Recipe, taught: float = 1.0) -> Court:
    """The court of a recipe's model; its judges are `taught` for that share of their steps, or were before."""
    recipe = whole.drawn
    trained, pairs, held = (data_of(recipe, split) for split in ("train", "pairs", "held out"))
    return Court(
        model=model,
        recipe=recipe,
        trained=replace(trained, scenes=0.0),
        held=replace(held, scenes=0.0, variants=5),
        things=judge_of_things(pairs, round(3000 * taught)),
        textures=judge_of_textures(recipe, round(1500 * taught)),
    )


def data_of(recipe: Recipe, split: Split) -> IconScenes:
    """A part of the recipe's data, which is of things in styles."""
    data = load_dataset(recipe, split)
    assert isinstance(data, IconScenes)
    return data


def prompts_for(data: IconScenes, icons: Tensor, key: torch.Generator) -> tuple[list[str], Tensor]:
    """A thing in a style on a ground, for each of some icons of `data`; and the grounds, as rows of GROUND_NAMES."""
    grounds = torch.randint(len(BACKGROUND_NAMES), (len(icons),), generator=key)
    texts = [
        f"{data.words.wordings[int(data.icons.things[i])][0]} in {data.styles[int(data.icons.styles[i])]} style "
        f"on {with_article(BACKGROUND_NAMES[int(g)])} background"
        for i, g in zip(icons, grounds, strict=True)
    ]
    return texts, grounds


def share(right: Tensor) -> float:
    """How many of some answers are right, 0..1."""
    return right.float().mean().item()


def all_of(data: IconScenes) -> Tensor:
    """Every row of a data set."""
    return torch.arange(len(data))


def of_judges(court: Court) -> Figures:
    """How well the judges judge renders that they have not seen: what is held out."""
    held, pixels = court.held, court.held.pixels(all_of(court.held))
    wide = every_icon(court.recipe, held=True)
    icon, ground = held.plan["first"], held.plan["background"]
    things, styles = held.icons.things[icon], held.icons.styles[icon]
    back = court.through_latents(pixels)
    return {
        "held-out renders": len(held.icons),
        "thing": share(seen(court.things, pixels) == things),
        "style": share(court.styles(pixels, things, ground) == styles),
        "style, through the autoencoder": share(court.styles(back, things, ground) == styles),
        "style by texture": share(seen(court.textures, pixels) == styles),
        "style by texture, through the autoencoder": share(seen(court.textures, back) == styles),
        "style by texture, of held-out icons of all things": share(
            seen(court.textures, wide.pixels(all_of(wide))) == wide.icons.styles[wide.plan["first"]]
        ),
        "held-out icons of all things": len(wide.icons),
        "ground": share(ground_of(pixels) == ground),
    }


def of_trained_pairs(court: Court, count: int) -> tuple[Figures, Tensor]:
    """What is recognised in pictures of things in styles that the model has seen."""
    data, key = court.trained, generator(SEED, "trained")
    icons = torch.randperm(len(data.icons), generator=key)
    icons = icons.repeat(-(-count // len(icons)))[:count]
    prompts, grounds = prompts_for(data, icons, key)
    start = time.perf_counter()
    pixels = court.draw(prompts)
    seconds = time.perf_counter() - start
    things, styles = data.icons.things[icons], data.icons.styles[icons]
    thing, style = seen(court.things, pixels) == things, court.styles(pixels, things, grounds) == styles
    missed = sorted({court.call(int(t)) for t in things[~thing]})
    figures = {
        "pictures": count,
        "thing": share(thing),
        "style": share(style),
        "ground": share(ground_of(pixels) == grounds),
        "style by style": {name: share(style[styles == s]) for s, name in enumerate(data.styles)},
        "style by texture": share(seen(court.textures, pixels) == styles),
        "real renders of them: thing": share(seen(court.things, data.pixels(icons)) == things),
        "things missed at least once": missed,
        "seconds for all pictures": seconds,
    }
    order = torch.cat([(~thing).nonzero()[:, 0], thing.nonzero()[:, 0]])
    return figures, pixels[order[:48]]


def of_held_out_pairs(court: Court, times: int = 5) -> tuple[Figures, Image.Image]:
    """What is recognised where the model has seen the thing in its other styles only."""
    held, key = court.held, generator(SEED, "held out")
    icons = torch.arange(len(held.icons)).repeat(times)
    prompts, grounds = prompts_for(held, icons, key)
    things, styles = held.icons.things[icons], held.icons.styles[icons]
    rows = torch.arange(len(icons))
    pixels, real = court.draw(prompts), held.pixels(rows)
    drawn, on_real = (share(seen(court.things, p) == things) for p in (pixels, real))
    style, style_on_real = (
        share(court.styles(p, things, on) == styles)
        for p, on in ((pixels, grounds), (real, held.plan["background"][rows]))
    )
    texture, texture_on_real = (share(seen(court.textures, p) == styles) for p in (pixels, real))
    figures = {
        "pairs": len(held.icons),
        "pictures": len(icons),
        "thing": drawn,
        "thing, on the real renders": on_real,
        "ratio": drawn / max(on_real, 1e-9),
        "style": style,
        "style, on the real renders": style_on_real,
        "style by texture": texture,
        "style by texture, on the real renders": texture_on_real,
    }
    plain = court.draw([text.partition(" on a")[0] for text in prompts[: len(held.icons)]])
    pairs = [to_image(p) for i in range(min(16, len(plain))) for p in (held.pixels(rows)[i], plain[i])]
    return figures, grid.grid(pairs, columns=8)


def of_guidance(court: Court, count: int) -> tuple[Figures, Image.Image]:
    """What is recognised at other guidance scales, in the default's few steps and in many."""
    key = generator(SEED, "guidance")
    icons = torch.randperm(len(court.trained.icons), generator=key)[:count]
    prompts, _ = prompts_for(court.trained, icons, key)
    figures: Figures = {}
    rows, labels = [], []
    ways: dict[str, dict[str, Any]] = {"thing by guidance scale": {}, f"the same, {MANY} steps of ddim": OF_MANY}
    for name, how in ways.items():
        figures[name] = {}
        for scale in SCALES:
            pixels = court.draw(prompts, guidance_scale=scale, **how)
            figures[name][f"{scale:g}"] = share(seen(court.things, pixels) == court.trained.icons.things[icons])
            rows += [to_image(p) for p in pixels[:8]]
            labels.append(f"guidance_scale {scale:g}" + f", {MANY} steps" * bool(how))
    return figures, grid.grid(rows, columns=8, row_labels=labels)


def of_seeds(court: Court, count: int) -> tuple[Figures, Image.Image]:
    """How different four pictures of one prompt are, where neither style nor place is said."""
    of_prompts = torch.randperm(len(court.trained.words.names), generator=generator(SEED, "seeds"))[:count]
    things = of_prompts.tolist()
    calls = [court.call(thing) for thing in things]
    pixels = court.draw([call for call in calls for _ in range(4)])
    white = torch.zeros(4 * count, dtype=torch.long)
    styles = court.styles(pixels, of_prompts.repeat_interleave(4), white).view(count, 4)
    apart = torch.stack([nearest(four) for four in torch.split(pixels, 4)])
    of_thing = court.trained.icons.things[court.trained.plan["first"]]
    on_white = (court.trained.plan["background"] == 0) & (court.trained.plan["second"] < 0)
    real = []
    for thing in things:
        rows = ((of_thing == thing) & on_white).nonzero()[:4, 0]
        if len(rows) == 4:
            real.append(nearest(court.trained.pixels(rows)))
    figures = {
        "prompts": count,
        "distance of the two nearest of four seeds": apart.mean().item(),
        "smallest such distance": apart.min().item(),
        "the same of four real pictures": torch.stack(real).mean().item(),
        "styles among four seeds": sum(len(set(four.tolist())) for four in styles) / count,
    }
    return figures, grid.grid([to_image(p) for p in pixels[:32]], columns=8)


def nearest(pixels: Tensor) -> Tensor:
    """How far the two most similar of some pictures are apart: root mean square over pixels in -1..1."""
    return torch.pdist(pixels.flatten(1)).min() / pixels[0].numel() ** 0.5


def of_negative_prompts(court: Court, count: int) -> tuple[Figures, Image.Image]:
    """What `negative_prompt` keeps away: a ground, where none is asked for."""
    without, figures = court.draw([""] * count), {}
    rows = [to_image(p) for p in without[:8]]
    for ground in ("blue", "white", "red"):
        negative, which = f"{ground} background", BACKGROUND_NAMES.index(ground)
        kept_away = court.draw([""] * count, negative_prompt=negative)
        figures[negative] = {
            "share of that ground, without a prompt": share(ground_of(without) == which),
            "share of that ground, kept away": share(ground_of(kept_away) == which),
        }
        rows += [to_image(p) for p in kept_away[:8]]
    labels = ["no prompt", *(f"negative: {name}" for name in figures)]
    return {"negative prompts": figures}, grid.grid(rows, columns=8, row_labels=labels)


def of_autoencoder(court: Court) -> Figures:
    """How much of held-out renders comes back through the latents, in dB."""
    pixels = court.held.pixels(all_of(court.held))
    each = [psnr(a, b, 2.0) for a, b in zip(pixels, court.through_latents(pixels), strict=True)]
    return {"PSNR on held-out renders, dB": sum(each) / len(each), "worst": min(each), "pictures": len(each)}


def of_clip(model: StableDiffusion, trained: IconScenes, held: IconScenes) -> Figures:
    """Held-out renders find their caption among all that the pair knows, and captions their render."""
    pair = retrieval.open_pair(model)
    held, words = replace(held, variants=5, scenes=0.0), trained.words
    pictures = retrieval.embed_pictures(pair, [to_image(p) for p in held.pixels(all_of(held))])
    texts = retrieval.embed_texts(pair, [calls[0] for calls in words.wordings])
    right = (pictures @ texts.T).argmax(1) == held.icons.things[held.plan["first"]]
    everything = every_icon_once(trained, held)
    icons = everything.icons
    renders = retrieval.embed_pictures(pair, [to_image(p) for p in everything.pixels(all_of(everything))])
    back: dict[str, list[bool]] = {"": [], ", its style named": []}
    for thing, style in zip(held.icons.things.tolist(), held.icons.styles.tolist(), strict=True):
        of_style = icons.styles == style
        for how, found in back.items():
            called = words.wordings[thing][0] + (f" in {held.styles[style]} style" if how else "")
            best = (renders[of_style] @ retrieval.embed_texts(pair, [called])[0]).argmax()
            found.append(int(icons.things[of_style][best]) == thing)
    return {
        "things": len(words.names),
        "caption of a held-out render, among all things": share(right),
        **{
            f"held-out render of a caption{how}, among all things of its style": sum(found) / len(found)
            for how, found in back.items()
        },
        "renders": len(held),
    }


def all_icons(trained: IconScenes, held: IconScenes) -> Icons:
    """The icons of both."""
    return Icons(
        **{name: torch.cat([getattr(part.icons, name) for part in (trained, held)]) for name in vars(held.icons)}
    )


def every_icon_once(trained: IconScenes, held: IconScenes) -> IconScenes:
    """One picture of each icon, trained and held out, on white."""
    made = replace(trained, icons=all_icons(trained, held), variants=1, scenes=0.0)
    made.plan["background"].zero_()
    return made


def of_two_things(court: Court, count: int) -> tuple[Figures, Image.Image]:
    """Two things in one picture, each where the words say, for each relation."""
    key, figures, shown = generator(SEED, "two"), {}, []
    vocabulary = torch.arange(min(100, len(court.trained.words.names)))
    for relation, name in enumerate(RELATIONS):
        things = torch.stack([vocabulary[torch.randperm(len(vocabulary), generator=key)[:2]] for _ in range(count)])
        prompts = [f"{court.call(a)} {name} {court.call(b)}" for a, b in things.tolist()]
        pixels = court.draw(prompts)
        found = torch.stack([seen(court.things, part(pixels, at)) for at in pair_centres(relation)], dim=1)
        figures[name] = {
            "both, where they should be": share((found == things).all(1)),
            "each, where it should be": share(found == things),
            "each, anywhere": share((found[:, :, None] == things[:, None, :]).any(1)),
        }
        shown += [to_image(p) for p in pixels[:8]]
    scenes = replace(court.trained, scenes=1.0, variants=1, seed=SEED)
    rows, right = (scenes.plan["second"] >= 0).nonzero()[:200, 0], []
    for row in torch.split(rows, 1):
        picture, places = scenes.pixels(row), pair_centres(int(scenes.plan["relation"][row]))
        shown_there = scenes.icons.things[torch.cat([scenes.plan["first"][row], scenes.plan["second"][row]])]
        right.append(seen(court.things, torch.cat([part(picture, at) for at in places])) == shown_there)
    figures["real scenes"] = {"both, where they should be": share(torch.stack(right).all(1))}
    return {"two things": figures}, grid.grid(shown, columns=8, row_labels=RELATIONS)


def part(pixels: Tensor, at: tuple[float, float]) -> Tensor:
    """What is around a place (x, y, in shares of the side), as large as the whole picture was."""
    side = pixels.shape[-1]
    wide = round(NEAR * side)
    x, y = (max(0, min(side - wide, round(a * side - wide / 2))) for a in at)
    return F.interpolate(pixels[:, :, y : y + wide, x : x + wide], side, mode="bilinear")
