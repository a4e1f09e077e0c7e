"""Measurements of a model of emoji-like pictures: each returns figures, and most a sheet of pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from classifiers import (
    SEED,
    background_of,
    common_icons,
    nearest_icon_style,
    predicted,
    style_classifier,
    thing_classifier,
)
from likeness import align, features, kernel_distance, placed, rim
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import gradina
from gradina.images import grid
from gradina.images.tensor import to_image, to_pixels
from gradina.pipeline.model import StableDiffusion
from gradina.tasks import retrieval
from gradina.tasks.metrics import psnr
from gradina.training.data.dataset import Split, generator
from gradina.training.data.icons import Icons, with_article
from gradina.training.data.sources import load_dataset
from gradina.training.data.synthetic import BACKGROUND_NAMES, PAIR_CENTRES, RELATIONS, IconScenes
from gradina.training.pretrain.recipes import Recipe

SCALES = (1.0, 3.0, 5.0, 7.5)
MANY = 50  # steps, as in the first release of Stable Diffusion
OF_MANY: dict[str, Any] = {"sampler": "ddim", "steps": MANY}
CROP = 0.52  # of the side: the crop around each of two things

Figures = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """The model, its training and held-out data, and the classifiers that evaluate it."""

    model: StableDiffusion
    recipe: Recipe
    trained: IconScenes
    held: IconScenes
    things: nn.Module
    style_network: nn.Module

    def name_of(self, thing: int) -> str:
        """The first name of a thing."""
        return self.trained.words.wordings[thing][0]

    @cached_property
    def icons(self) -> Icons:
        """Every icon of its things in its styles, held out or not."""
        return all_icons(self.trained, self.held)

    def styles(self, pixels: Tensor, things: Tensor, grounds: Tensor) -> Tensor:
        """The style of each picture, of a known thing on a known background."""
        return nearest_icon_style(pixels, things, grounds, self.icons)

    def reconstruct(self, pixels: Tensor) -> Tensor:
        """Pixels (n, 3, h, w), encoded and decoded by the model's autoencoder."""
        parts = torch.split(pixels, 32)
        return torch.stack([to_pixels(image) for part in parts for image in self.model.decode(self.model.encode(part))])

    def draw(self, prompts: Sequence[str], seed: int = SEED, **fields: Any) -> Tensor:
        """One picture for each prompt, as pixels (n, 3, h, w)."""
        request = gradina.Request(prompt=tuple(prompts), seed=seed, **fields)
        return torch.stack([to_pixels(picture.image) for picture in gradina.generate(self.model, request)])


def open_evaluation(model: StableDiffusion, whole: Recipe, fraction_of_steps: float = 1.0) -> Evaluation:
    """The evaluation of a recipe's model; classifiers take a fraction of their training steps."""
    recipe = whole.drawn
    trained, pairs, held = (data_of(recipe, split) for split in ("train", "pairs", "held out"))
    return Evaluation(
        model=model,
        recipe=recipe,
        trained=replace(trained, scenes=0.0),
        held=replace(held, scenes=0.0, variants=5),
        things=thing_classifier(pairs, round(3000 * fraction_of_steps)),
        style_network=style_classifier(recipe, round(3000 * fraction_of_steps)),
    )


def data_of(recipe: Recipe, split: Split) -> IconScenes:
    """A split of the recipe's data, which is composed of things in styles."""
    data = load_dataset(recipe, split)
    assert isinstance(data, IconScenes)
    return data


def prompts_for(data: IconScenes, icons: Tensor, key: torch.Generator) -> tuple[list[str], Tensor]:
    """A prompt per icon (thing, style, random background), and the backgrounds, as rows of BACKGROUND_NAMES."""
    grounds = torch.randint(len(BACKGROUND_NAMES), (len(icons),), generator=key)
    texts = [
        f"{data.words.wordings[int(data.icons.things[i])][0]} in {data.styles[int(data.icons.styles[i])]} style "
        f"on {with_article(BACKGROUND_NAMES[int(g)])} background"
        for i, g in zip(icons, grounds, strict=True)
    ]
    return texts, grounds


def fraction(correct: Tensor) -> float:
    """The fraction of True, 0..1."""
    return correct.float().mean().item()


def all_rows(data: IconScenes) -> Tensor:
    """The indices of all rows."""
    return torch.arange(len(data))


def classifier_accuracy(evaluation: Evaluation) -> Figures:
    """The accuracy of the classifiers on held-out renders."""
    held, pixels = evaluation.held, evaluation.held.pixels(all_rows(evaluation.held))
    common = common_icons(evaluation.recipe, held=True)
    icon, ground = held.plan["first"], held.plan["background"]
    things, styles = held.icons.things[icon], held.icons.styles[icon]
    reconstructed = evaluation.reconstruct(pixels)
    return {
        "held-out renders": len(held.icons),
        "thing": fraction(predicted(evaluation.things, pixels) == things),
        "style": fraction(evaluation.styles(pixels, things, ground) == styles),
        "style, through the autoencoder": fraction(evaluation.styles(reconstructed, things, ground) == styles),
        "style by a network": fraction(predicted(evaluation.style_network, pixels) == styles),
        "style by a network, through the autoencoder": fraction(
            predicted(evaluation.style_network, reconstructed) == styles
        ),
        "style by a network, of held-out icons of all things": fraction(
            predicted(evaluation.style_network, common.pixels(all_rows(common)))
            == common.icons.styles[common.plan["first"]]
        ),
        "held-out icons of all things": len(common.icons),
        "ground": fraction(background_of(pixels) == ground),
    }


@dataclass(frozen=True)
class Drawn:
    """What a model draws of prompts that name thing, style and background."""

    pixels: Tensor  # (n, 3, h, w) in -1..1
    icons: Tensor  # (n,) rows of the trained icons
    grounds: Tensor  # (n,) rows of BACKGROUND_NAMES
    seconds: float


def draw_trained_pairs(evaluation: Evaluation, count: int) -> Drawn:
    """Pictures of things in styles that the model was trained on."""
    data, key = evaluation.trained, generator(SEED, "trained")
    icons = torch.randperm(len(data.icons), generator=key)
    icons = icons.repeat(-(-count // len(icons)))[:count]
    prompts, grounds = prompts_for(data, icons, key)
    start = time.perf_counter()
    pixels = evaluation.draw(prompts)
    return Drawn(pixels, icons, grounds, time.perf_counter() - start)


def trained_pairs(evaluation: Evaluation, drawn: Drawn) -> tuple[Figures, Tensor]:
    """Recognition of things in styles that the model was trained on."""
    data, pixels, icons, grounds = evaluation.trained, drawn.pixels, drawn.icons, drawn.grounds
    things, styles = data.icons.things[icons], data.icons.styles[icons]
    thing, style = predicted(evaluation.things, pixels) == things, evaluation.styles(pixels, things, grounds) == styles
    missed = sorted({evaluation.name_of(int(t)) for t in things[~thing]})
    figures = {
        "pictures": len(pixels),
        "thing": fraction(thing),
        "style": fraction(style),
        "ground": fraction(background_of(pixels) == grounds),
        "style by style": {name: fraction(style[styles == s]) for s, name in enumerate(data.styles)},
        "style by a network": fraction(predicted(evaluation.style_network, pixels) == styles),
        "real renders of them: thing": fraction(predicted(evaluation.things, data.pixels(icons)) == things),
        "things missed at least once": missed,
        "seconds for all pictures": drawn.seconds,
    }
    order = torch.cat([(~thing).nonzero()[:, 0], thing.nonzero()[:, 0]])
    return figures, pixels[order[:48]]


def likeness(evaluation: Evaluation, drawn: Drawn) -> tuple[Figures, Image.Image]:
    """How near pictures are to the icons that they should show, and how near the autoencoder alone brings those."""
    icons, rows, grounds = evaluation.trained.icons, drawn.icons, drawn.grounds
    ours = align(drawn.pixels, icons, rows, grounds)
    real = torch.stack([placed(icons, int(i), int(g)) for i, g in zip(rows, grounds, strict=True)])
    decoded = align(evaluation.reconstruct(real), icons, rows, grounds)
    of_real = features(evaluation.things, real)
    figures = {
        name: {
            "aligned PSNR, dB: median": aligned.psnr.median().item(),
            "aligned PSNR, dB: 10th percentile": aligned.psnr.quantile(0.1).item(),
            "edges, relative to the icon's": aligned.edges.median().item(),
            "rim, grey levels, mean": rim(aligned.pictures).mean().item(),
            "KID": kernel_distance(features(evaluation.things, aligned.pictures), of_real),
        }
        for name, aligned in (("ours", ours), ("through the autoencoder", decoded))
    }
    shown = [to_image(p) for i in range(0, 24, 8) for part in (ours.pictures, ours.icons) for p in part[i : i + 8]]
    return figures, grid.grid(shown, columns=8, row_labels=3 * ("ours", "icons"))


def held_out_pairs(evaluation: Evaluation, times: int = 5) -> tuple[Figures, Image.Image]:
    """Recognition of things that the model was trained on in their other styles only."""
    held, key = evaluation.held, generator(SEED, "held out")
    icons = torch.arange(len(held.icons)).repeat(times)
    prompts, grounds = prompts_for(held, icons, key)
    things, styles = held.icons.things[icons], held.icons.styles[icons]
    rows = torch.arange(len(icons))
    pixels, real = evaluation.draw(prompts), held.pixels(rows)
    on_drawn, on_real = (fraction(predicted(evaluation.things, p) == things) for p in (pixels, real))
    style, style_on_real = (
        fraction(evaluation.styles(p, things, on) == styles)
        for p, on in ((pixels, grounds), (real, held.plan["background"][rows]))
    )
    by_network, by_network_on_real = (
        fraction(predicted(evaluation.style_network, p) == styles) for p in (pixels, real)
    )
    figures = {
        "pairs": len(held.icons),
        "pictures": len(icons),
        "thing": on_drawn,
        "thing, on the real renders": on_real,
        "ratio": on_drawn / max(on_real, 1e-9),
        "style": style,
        "style, on the real renders": style_on_real,
        "style by a network": by_network,
        "style by a network, on the real renders": by_network_on_real,
    }
    plain = evaluation.draw([text.partition(" on a")[0] for text in prompts[: len(held.icons)]])
    pairs = [to_image(p) for i in range(min(16, len(plain))) for p in (held.pixels(rows)[i], plain[i])]
    return figures, grid.grid(pairs, columns=8)


def guidance_scales(evaluation: Evaluation, count: int) -> tuple[Figures, Image.Image]:
    """Recognition by guidance scale, with the default number of steps and with many."""
    key = generator(SEED, "guidance")
    icons = torch.randperm(len(evaluation.trained.icons), generator=key)[:count]
    prompts, _ = prompts_for(evaluation.trained, icons, key)
    figures: Figures = {}
    rows, labels = [], []
    variants: dict[str, dict[str, Any]] = {"thing by guidance scale": {}, f"the same, {MANY} steps of ddim": OF_MANY}
    for name, fields in variants.items():
        figures[name] = {}
        for scale in SCALES:
            pixels = evaluation.draw(prompts, guidance_scale=scale, **fields)
            correct = predicted(evaluation.things, pixels) == evaluation.trained.icons.things[icons]
            figures[name][f"{scale:g}"] = {
                "thing": fraction(correct),
                "rim, grey levels, mean": rim(pixels).mean().item(),
            }
            rows += [to_image(p) for p in pixels[:8]]
            labels.append(f"guidance_scale {scale:g}" + f", {MANY} steps" * bool(fields))
    return figures, grid.grid(rows, columns=8, row_labels=labels)


def seed_diversity(evaluation: Evaluation, count: int) -> tuple[Figures, Image.Image]:
    """Diversity among four seeds of prompts that name neither style nor background."""
    prompted = torch.randperm(len(evaluation.trained.words.names), generator=generator(SEED, "seeds"))[:count]
    things = prompted.tolist()
    pixels = evaluation.draw([evaluation.name_of(thing) for thing in things for _ in range(4)])
    white = torch.zeros(4 * count, dtype=torch.long)
    styles = evaluation.styles(pixels, prompted.repeat_interleave(4), white).view(count, 4)
    distances = torch.stack([smallest_distance(four) for four in torch.split(pixels, 4)])
    of_thing = evaluation.trained.icons.things[evaluation.trained.plan["first"]]
    on_white = (evaluation.trained.plan["background"] == 0) & (evaluation.trained.plan["second"] < 0)
    real = []
    for thing in things:
        rows = ((of_thing == thing) & on_white).nonzero()[:4, 0]
        if len(rows) == 4:
            real.append(smallest_distance(evaluation.trained.pixels(rows)))
    figures = {
        "prompts": count,
        "distance of the two nearest of four seeds": distances.mean().item(),
        "smallest such distance": distances.min().item(),
        "the same of four real pictures": torch.stack(real).mean().item(),
        "styles among four seeds": sum(len(set(four.tolist())) for four in styles) / count,
    }
    return figures, grid.grid([to_image(p) for p in pixels[:32]], columns=8)


def smallest_distance(pixels: Tensor) -> Tensor:
    """Root mean square distance, over pixels in -1..1, of the two most similar of some pictures."""
    return torch.pdist(pixels.flatten(1)).min() / pixels[0].numel() ** 0.5


def negative_prompts(evaluation: Evaluation, count: int) -> tuple[Figures, Image.Image]:
    """How well `negative_prompt` avoids a background when the prompt is empty."""
    without, figures = evaluation.draw([""] * count), {}
    rows = [to_image(p) for p in without[:8]]
    for ground in ("blue", "white", "red"):
        negative, which = f"{ground} background", BACKGROUND_NAMES.index(ground)
        avoided = evaluation.draw([""] * count, negative_prompt=negative)
        figures[negative] = {
            "share of that ground, without a prompt": fraction(background_of(without) == which),
            "share of that ground, kept away": fraction(background_of(avoided) == which),
        }
        rows += [to_image(p) for p in avoided[:8]]
    labels = ["no prompt", *(f"negative: {name}" for name in figures)]
    return {"negative prompts": figures}, grid.grid(rows, columns=8, row_labels=labels)


def autoencoder_psnr(evaluation: Evaluation) -> Figures:
    """Reconstruction of held-out renders, in dB."""
    pixels = evaluation.held.pixels(all_rows(evaluation.held))
    each = [psnr(a, b, 2.0) for a, b in zip(pixels, evaluation.reconstruct(pixels), strict=True)]
    return {"PSNR on held-out renders, dB": sum(each) / len(each), "worst": min(each), "pictures": len(each)}


def clip_retrieval(model: StableDiffusion, trained: IconScenes, held: IconScenes) -> Figures:
    """Retrieval of captions by held-out renders, among all things of the pair, and of renders by captions."""
    pair = retrieval.open_pair(model)
    held, words = replace(held, variants=5, scenes=0.0), trained.words
    pictures = retrieval.embed_pictures(pair, [to_image(p) for p in held.pixels(all_rows(held))])
    texts = retrieval.embed_texts(pair, [calls[0] for calls in words.wordings])
    correct = (pictures @ texts.T).argmax(1) == held.icons.things[held.plan["first"]]
    everything = one_picture_per_icon(trained, held)
    icons = everything.icons
    renders = retrieval.embed_pictures(pair, [to_image(p) for p in everything.pixels(all_rows(everything))])
    by_caption: dict[str, list[bool]] = {"": [], ", its style named": []}
    for thing, style in zip(held.icons.things.tolist(), held.icons.styles.tolist(), strict=True):
        of_style = icons.styles == style
        for suffix, found in by_caption.items():
            caption = words.wordings[thing][0] + (f" in {held.styles[style]} style" if suffix else "")
            best = (renders[of_style] @ retrieval.embed_texts(pair, [caption])[0]).argmax()
            found.append(int(icons.things[of_style][best]) == thing)
    return {
        "things": len(words.names),
        "caption of a held-out render, among all things": fraction(correct),
        **{
            f"held-out render of a caption{suffix}, among all things of its style": sum(found) / len(found)
            for suffix, found in by_caption.items()
        },
        "renders": len(held),
    }


def all_icons(trained: IconScenes, held: IconScenes) -> Icons:
    """The icons of both splits."""
    return Icons(
        **{name: torch.cat([getattr(part.icons, name) for part in (trained, held)]) for name in vars(held.icons)}
    )


def one_picture_per_icon(trained: IconScenes, held: IconScenes) -> IconScenes:
    """One picture of each icon, trained and held out, on white."""
    single = replace(trained, icons=all_icons(trained, held), variants=1, scenes=0.0)
    single.plan["background"].zero_()
    return single


def two_things(evaluation: Evaluation, count: int) -> tuple[Figures, Image.Image]:
    """Two things in one picture, each in the position that the prompt says, for each relation."""
    key, figures, shown = generator(SEED, "two"), {}, []
    vocabulary = torch.arange(min(100, len(evaluation.trained.words.names)))
    for relation, name in enumerate(RELATIONS):
        things = torch.stack([vocabulary[torch.randperm(len(vocabulary), generator=key)[:2]] for _ in range(count)])
        prompts = [f"{evaluation.name_of(a)} {name} {evaluation.name_of(b)}" for a, b in things.tolist()]
        pixels = evaluation.draw(prompts)
        found = torch.stack([predicted(evaluation.things, crop(pixels, at)) for at in PAIR_CENTRES[relation]], dim=1)
        figures[name] = {
            "both, where they should be": fraction((found == things).all(1)),
            "each, where it should be": fraction(found == things),
            "each, anywhere": fraction((found[:, :, None] == things[:, None, :]).any(1)),
        }
        shown += [to_image(p) for p in pixels[:8]]
    scenes = replace(evaluation.trained, scenes=1.0, variants=1, seed=SEED)
    rows, correct = (scenes.plan["second"] >= 0).nonzero()[:200, 0], []
    for row in torch.split(rows, 1):
        picture, places = scenes.pixels(row), PAIR_CENTRES[int(scenes.plan["relation"][row])]
        shown_there = scenes.icons.things[torch.cat([scenes.plan["first"][row], scenes.plan["second"][row]])]
        correct.append(predicted(evaluation.things, torch.cat([crop(picture, at) for at in places])) == shown_there)
    figures["real scenes"] = {"both, where they should be": fraction(torch.stack(correct).all(1))}
    return {"two things": figures}, grid.grid(shown, columns=8, row_labels=RELATIONS)


def crop(pixels: Tensor, at: tuple[float, float]) -> Tensor:
    """A crop around a position (x, y; fractions of the side), resized to the size of the picture."""
    side = pixels.shape[-1]
    inner = round(CROP * side)
    x, y = (max(0, min(side - inner, round(a * side - inner / 2))) for a in at)
    return F.interpolate(pixels[:, :, y : y + inner, x : x + inner], side, mode="bilinear")
