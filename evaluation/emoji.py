"""How good is the `emoji` model? Judges trained here on rendered icons look at what it draws.

    python evaluation/emoji.py [--model emoji] [--pictures 500] [--quick]

Prints a table, writes `evaluation/emoji.json`, the pictures of `docs/emoji/` and the figures on the model's card.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from cards import put_section
from judges import SEED, every_icon, ground_of, judge_of_styles, judge_of_things, seen
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import gradina
from gradina import sheet, similarity
from gradina.metrics import psnr
from gradina.pipeline import StableDiffusion, to_image, to_pixels
from gradina.training.data import generator
from gradina.training.icons import GROUND_NAMES, RELATIONS, Composed, places_of, with_article
from gradina.training.recipes import Recipe, read_recipe
from gradina.training.sources import load_data
from gradina.weights.zoo import shipped

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "emoji"
SCALES = (1.0, 3.0, 7.5, 14.0)
NEAR = 0.52  # of the side: what is cut out around each of two things

Figures = dict[str, Any]


@dataclass(frozen=True)
class Court:
    """The model, what it learnt from and has not seen, and who judges it."""

    model: StableDiffusion
    recipe: Recipe
    trained: Composed
    held: Composed
    things: nn.Module
    styles: nn.Module

    def call(self, thing: int) -> str:
        """What a thing is called first."""
        return self.trained.words.calls[thing][0]

    def draw(self, prompts: Sequence[str], seed: int = SEED, **fields: Any) -> Tensor:
        """One picture for each prompt, as pixels (n, 3, h, w)."""
        request = gradina.Request(prompt=tuple(prompts), seed=seed, **fields)
        return torch.stack([to_pixels(picture.image) for picture in gradina.generate(self.model, request)])

    def prompts(self, data: Composed, icons: Tensor, key: torch.Generator) -> tuple[list[str], Tensor]:
        """A thing in a style on a ground, for each of some icons of `data`; and the grounds."""
        grounds = torch.randint(len(GROUND_NAMES), (len(icons),), generator=key)
        texts = [
            f"{self.call(int(data.icons.things[i]))} in {data.styles[int(data.icons.styles[i])]} style "
            f"on {with_article(GROUND_NAMES[int(g)])} background"
            for i, g in zip(icons, grounds, strict=True)
        ]
        return texts, grounds


def share(right: Tensor) -> float:
    """How many of some answers are right, 0..1."""
    return right.float().mean().item()


def all_of(data: Composed) -> Tensor:
    """Every row of a data set."""
    return torch.arange(len(data))


def of_judges(court: Court) -> Figures:
    """How well the judges judge renders that they have not seen: what is held out."""
    held, pixels = court.held, court.held.pixels(all_of(court.held))
    wide = every_icon(court.recipe, held=True)
    icon = held.plan["first"]
    return {
        "held-out renders": len(held.icons),
        "thing": share(seen(court.things, pixels) == held.icons.things[icon]),
        "style": share(seen(court.styles, pixels) == held.icons.styles[icon]),
        "style, of held-out icons of all things": share(
            seen(court.styles, wide.pixels(all_of(wide))) == wide.icons.styles[wide.plan["first"]]
        ),
        "held-out icons of all things": len(wide.icons),
        "ground": share(ground_of(pixels) == held.plan["ground"]),
    }


def of_trained_pairs(court: Court, count: int) -> tuple[Figures, Tensor]:
    """What is recognised in pictures of things in styles that the model has seen."""
    data, key = court.trained, generator(SEED, "trained")
    icons = torch.randperm(len(data.icons), generator=key)
    icons = icons.repeat(-(-count // len(icons)))[:count]
    prompts, grounds = court.prompts(data, icons, key)
    start = time.perf_counter()
    pixels = court.draw(prompts)
    seconds = time.perf_counter() - start
    thing = seen(court.things, pixels) == data.icons.things[icons]
    style = seen(court.styles, pixels) == data.icons.styles[icons]
    missed = sorted({court.call(int(t)) for t in data.icons.things[icons[~thing]]})
    figures = {
        "pictures": count,
        "thing": share(thing),
        "style": share(style),
        "ground": share(ground_of(pixels) == grounds),
        "style by style": {
            name: share(style[data.icons.styles[icons] == s]) for s, name in enumerate(court.trained.styles)
        },
        "real renders of them: thing": share(
            seen(court.things, court.trained.pixels(icons)) == data.icons.things[icons]
        ),
        "things missed at least once": missed,
        "seconds for all pictures": seconds,
    }
    order = torch.cat([(~thing).nonzero()[:, 0], thing.nonzero()[:, 0]])
    return figures, pixels[order[:48]]


def of_held_out_pairs(court: Court, times: int = 5) -> tuple[Figures, Image.Image]:
    """What is recognised where the model has seen the thing in its other styles only."""
    held, key = court.held, generator(SEED, "held out")
    icons = torch.arange(len(held.icons)).repeat(times)
    prompts, _ = court.prompts(held, icons, key)
    pixels = court.draw(prompts)
    rows = torch.arange(len(icons))
    real = held.pixels(rows)
    drawn, on_real = (seen(court.things, p) == held.icons.things[icons] for p in (pixels, real))
    style, style_on_real = (seen(court.styles, p) == held.icons.styles[icons] for p in (pixels, real))
    figures = {
        "pairs": len(held.icons),
        "pictures": len(icons),
        "thing": share(drawn),
        "thing, on the real renders": share(on_real),
        "ratio": share(drawn) / max(share(on_real), 1e-9),
        "style": share(style),
        "style, on the real renders": share(style_on_real),
    }
    plain = court.draw([text.partition(" on a")[0] for text in prompts[: len(held.icons)]])
    pairs = [to_image(p) for i in range(min(16, len(plain))) for p in (held.pixels(rows)[i], plain[i])]
    return figures, sheet.grid(pairs, columns=8)


def of_guidance(court: Court, count: int) -> tuple[Figures, Image.Image]:
    """What is recognised at other guidance scales."""
    key = generator(SEED, "guidance")
    icons = torch.randperm(len(court.trained.icons), generator=key)[:count]
    prompts, _ = court.prompts(court.trained, icons, key)
    figures, rows = {}, []
    for scale in SCALES:
        pixels = court.draw(prompts, guidance_scale=scale)
        figures[f"{scale:g}"] = share(seen(court.things, pixels) == court.trained.icons.things[icons])
        rows += [to_image(p) for p in pixels[:8]]
    labels = [f"guidance_scale {scale:g}" for scale in SCALES]
    return {"thing by guidance scale": figures}, sheet.grid(rows, columns=8, row_labels=labels)


def of_seeds(court: Court, count: int) -> tuple[Figures, Image.Image]:
    """How different four pictures of one prompt are, where neither style nor place is said."""
    things = torch.randperm(court.recipe.data.icons.count, generator=generator(SEED, "seeds"))[:count].tolist()  # type: ignore[union-attr]
    calls = [court.call(thing) for thing in things]
    pixels = court.draw([call for call in calls for _ in range(4)]).view(count, 4, 3, -1)
    styles = seen(court.styles, pixels.reshape(count * 4, 3, *court.trained.pixels(torch.tensor([0])).shape[2:]))
    apart = torch.stack([torch.pdist(four.flatten(1)).min() for four in pixels]) / pixels[0, 0].numel() ** 0.5
    of_thing = court.trained.icons.things[court.trained.plan["first"]]
    white = (court.trained.plan["ground"] == 0) & (court.trained.plan["second"] < 0)
    real = []
    for thing in things:
        rows = ((of_thing == thing) & white).nonzero()[:4, 0]
        if len(rows) == 4:
            real.append(torch.pdist(court.trained.pixels(rows).flatten(1)).min() / pixels[0, 0].numel() ** 0.5)
    figures = {
        "prompts": count,
        "distance of the two nearest of four seeds": apart.mean().item(),
        "smallest such distance": apart.min().item(),
        "the same of four real pictures": torch.stack(real).mean().item(),
        "styles among four seeds": sum(len(set(four.tolist())) for four in styles.view(count, 4)) / count,
    }
    side = court.model.defaults.width
    shown = [to_image(p.view(3, side, side)) for four in pixels[:8] for p in four]
    return figures, sheet.grid(shown, columns=8)


def of_negative_prompts(court: Court, count: int) -> tuple[Figures, Image.Image]:
    """What `negative_prompt` keeps away: a ground, where none is asked for."""
    rows, figures = [], {}
    for ground in ("blue", "white", "red"):
        negative, which = f"{ground} background", GROUND_NAMES.index(ground)
        without = court.draw([""] * count)
        kept_away = court.draw([""] * count, negative_prompt=negative)
        figures[negative] = {
            "share of that ground, without a prompt": share(ground_of(without) == which),
            "share of that ground, kept away": share(ground_of(kept_away) == which),
        }
        rows += [to_image(p) for p in kept_away[:8]]
        if ground == "blue":
            rows = [to_image(p) for p in without[:8]] + rows
    labels = ["no prompt", *(f"negative: {name}" for name in figures)]
    return {"negative prompts": figures}, sheet.grid(rows, columns=8, row_labels=labels)


def of_autoencoder(court: Court) -> Figures:
    """How much of held-out renders comes back through the latents, in dB."""
    pixels = court.held.pixels(all_of(court.held))
    back = [
        to_pixels(image) for part in torch.split(pixels, 32) for image in court.model.decode(court.model.encode(part))
    ]
    each = [psnr(a, b, 2.0) for a, b in zip(pixels, back, strict=True)]
    return {"PSNR on held-out renders, dB": sum(each) / len(each), "worst": min(each), "pictures": len(each)}


def of_clip(court: Court) -> Figures:
    """Held-out renders find their caption among the whole vocabulary, and captions their render."""
    pair = similarity.open_pair(court.model)
    held, words = court.held, court.trained.words
    pictures = similarity.embed_pictures(pair, [to_image(p) for p in held.pixels(all_of(held))])
    texts = similarity.embed_texts(pair, [calls[0] for calls in words.calls])
    right = (pictures @ texts.T).argmax(1) == held.icons.things[held.plan["first"]]
    everything = every_icon_once(court)
    icons, renders = (
        everything.icons,
        similarity.embed_pictures(pair, [to_image(p) for p in everything.pixels(all_of(everything))]),
    )
    back = []
    for thing, style in zip(held.icons.things.tolist(), held.icons.styles.tolist(), strict=True):
        of_style = icons.styles == style
        query = similarity.embed_texts(pair, [f"{words.calls[thing][0]} in {held.styles[style]} style"])[0]
        best = (renders[of_style] @ query).argmax()
        back.append(int(icons.things[of_style][best]) == thing)
    return {
        "caption of a held-out render, among all things": share(right),
        "held-out render of a caption, among all things of its style": sum(back) / len(back),
        "renders": len(held),
    }


def every_icon_once(court: Court) -> Composed:
    """One picture of each icon, trained and held out, on white."""
    icons = court.trained.icons
    both = replace(
        icons,
        **{name: torch.cat([getattr(icons, name), getattr(court.held.icons, name)]) for name in vars(icons)},
    )
    made = replace(court.trained, icons=both, variants=1, scenes=0.0)
    made.plan["ground"].zero_()
    return made


def of_two_things(court: Court, count: int) -> tuple[Figures, Image.Image]:
    """Two things in one picture, each where the words say, for each relation."""
    key, figures, shown = generator(SEED, "two"), {}, []
    vocabulary = torch.arange(min(100, len(court.trained.words.names)))
    for relation, name in enumerate(RELATIONS):
        things = torch.stack([vocabulary[torch.randperm(len(vocabulary), generator=key)[:2]] for _ in range(count)])
        prompts = [f"{court.call(a)} {name} {court.call(b)}" for a, b in things.tolist()]
        pixels = court.draw(prompts)
        found = torch.stack([seen(court.things, part(pixels, at)) for at in places_of(relation)], dim=1)
        figures[name] = {
            "both, where they should be": share((found == things).all(1)),
            "each, where it should be": share(found == things),
            "each, anywhere": share((found[:, :, None] == things[:, None, :]).any(1)),
        }
        shown += [to_image(p) for p in pixels[:8]]
    scenes = replace(court.trained, scenes=1.0, variants=1, seed=SEED)
    rows = (scenes.plan["second"] >= 0).nonzero()[:200, 0]
    right = []
    for row in rows.tolist():
        plan = {k: v[row] for k, v in scenes.plan.items()}
        picture = scenes._picture(row)[None] / 127.5 - 1
        boxes = torch.cat([part(picture, at) for at in places_of(int(plan["relation"]))])
        right.append(seen(court.things, boxes) == scenes.icons.things[torch.stack([plan["first"], plan["second"]])])
    figures["real scenes"] = {"both, where they should be": share(torch.stack(right).all(1))}
    return {"two things": figures}, sheet.grid(shown, columns=8, row_labels=RELATIONS)


def part(pixels: Tensor, at: tuple[float, float]) -> Tensor:
    """What is around a place (x, y, in shares of the side), as large as the whole picture was."""
    side = pixels.shape[-1]
    wide = round(NEAR * side)
    x, y = (max(0, min(side - wide, round(a * side - wide / 2))) for a in at)
    return F.interpolate(pixels[:, :, y : y + wide, x : x + wide], side, mode="bilinear")


def measured(court: Court, pictures: int) -> tuple[Figures, dict[str, Image.Image]]:
    """Everything, and a picture for each part of it."""
    few = max(8, pictures // 10)
    trained, shown = of_trained_pairs(court, pictures)
    held, held_sheet = of_held_out_pairs(court)
    guidance, guidance_sheet = of_guidance(court, 2 * few)
    seeds, seeds_sheet = of_seeds(court, few)
    negative, negative_sheet = of_negative_prompts(court, few)
    two, two_sheet = of_two_things(court, few)
    figures = {
        "judges on renders that they have not seen": of_judges(court),
        "trained pairs": trained,
        "held-out pairs": held,
        **guidance,
        "seeds": seeds,
        **negative,
        "autoencoder": of_autoencoder(court),
        "CLIP": of_clip(court),
        **two,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return figures, {
        "drawn": sheet.grid([to_image(p) for p in shown], columns=12),
        "held-out": held_sheet,
        "guidance": guidance_sheet,
        "seeds": seeds_sheet,
        "negative": negative_sheet,
        "two": two_sheet,
    }


def told(figures: Figures) -> str:
    """The table of what was measured, in Markdown."""
    judges, trained, held = (figures[k] for k in list(figures)[:3])
    vae, clip = figures["autoencoder"], list(figures["CLIP"].values())
    two = [figures["two things"][relation]["each, where it should be"] for relation in RELATIONS]

    def percent(*values: float) -> str:
        return ", ".join(f"{100 * value:.1f} %" for value in values)

    of_held = f"{held['pictures']} pictures of {held['pairs']} held-out pairs"
    scales = figures["thing by guidance scale"]
    rows = {
        f"{trained['pictures']} pictures of trained pairs: thing, style, ground as asked for": percent(
            trained["thing"], trained["style"], trained["ground"]
        ),
        f"{of_held}: thing, style": percent(held["thing"], held["style"]),
        "the same on the real renders of those pairs": percent(
            held["thing, on the real renders"], held["style, on the real renders"]
        ),
        f"thing at guidance scale {', '.join(scales)}": percent(*scales.values()),
        "autoencoder, held-out renders": f"{vae['PSNR on held-out renders, dB']:.1f} dB",
        "CLIP: from held-out renders to captions, and back": percent(clip[0], clip[1]),
        "two things: each where the words say": percent(sum(two) / len(two)),
        "the judges, on renders new to them: thing, style, ground": percent(
            judges["thing"], judges["style"], judges["ground"]
        ),
        f"the judge of styles, on {judges['held-out icons of all things']} held-out icons of all things": percent(
            judges["style, of held-out icons of all things"]
        ),
    }
    return "\n".join(("| | |", "|---|---:|", *(f"| {k} | {v} |" for k, v in rows.items())))


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="a shipped model or a folder (default: emoji)")
    parser.add_argument("--pictures", type=int, default=500, help="how many to draw of trained pairs (default: 500)")
    parser.add_argument("--quick", action="store_true", help="teach the judges for a minute only, and write nothing")
    options = parser.parse_args()

    recipe, model = read_recipe(ROOT / "recipes" / "emoji.toml"), gradina.load(options.model)
    trained, pairs, held = (load_data(recipe, split) for split in ("train", "pairs", "held out"))
    assert isinstance(trained, Composed)
    assert isinstance(pairs, Composed)
    assert isinstance(held, Composed)
    share_of_steps = 0.1 if options.quick else 1.0
    court = Court(
        model=model,
        recipe=recipe,
        trained=replace(trained, scenes=0.0),
        held=replace(held, scenes=0.0, variants=5),
        things=judge_of_things(pairs, round(3000 * share_of_steps)),
        styles=judge_of_styles(recipe, round(1500 * share_of_steps)),
    )
    figures, sheets = measured(court, options.pictures)
    print(json.dumps(figures, indent=2))
    if options.model == "emoji" and not options.quick:
        (ROOT / "evaluation" / "emoji.json").write_text(json.dumps(figures, indent=2) + "\n")
        for name, picture in sheets.items():
            picture.save(PAGE / f"{name}.png")
        put_section(shipped()["emoji"] / "README.md", "## How good it is", told(figures), "## Use")
    else:
        for name, picture in sheets.items():
            picture.save(Path(f"evaluation-{name}.png"))


if __name__ == "__main__":
    main()
