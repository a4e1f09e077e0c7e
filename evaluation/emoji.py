"""How good is the `emoji` model? Judges trained here on rendered icons look at what it draws.

    python evaluation/emoji.py [--model emoji] [--pictures 500] [--quick]

Prints a table, writes `evaluation/emoji.json`, the pictures of `docs/emoji/` and the figures on its page and its card.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import trials
from cards import put_section
from PIL import Image
from trials import Court, Figures, court_of, data_of

import gradina
from gradina.images import grid
from gradina.pipeline.model import to_image
from gradina.training.data.synthetic import RELATIONS
from gradina.training.pretrain.recipes import Recipe, read_recipe
from gradina.weights.registry import shipped

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "emoji"
FRONT = (  # prompts of the picture that the README begins with, one picture each, whatever comes
    "a teddy bear on a pink background", "a rocket in fluent-emoji style", "a red apple on a green background",
    "a penguin in noto style on a blue background", "a guitar in twemoji style", "a hamburger on a yellow background",
    "an owl on an orange background", "a house in fluent-emoji-flat style", "a sailboat on a blue background",
    "a cat in twemoji style on a purple background", "a crown", "a rose in noto style on a black background",
    "a bicycle on a gray background", "a butterfly in fluent-emoji style", "a strawberry on a pink background",
    "an elephant in noto style", "a snowman on a blue background", "a pizza in fluent-emoji-flat style",
    "a frog on a brown background", "a tiger in noto style on a green background", "a birthday cake",
    "a soccer ball on a red background", "a sunflower in fluent-emoji style", "an umbrella on a white background",
)  # fmt: skip
LIMITS = """\
It draws one of these things at a time, in the middle of a plain ground, and was shown no person, no action and no
writing; of words that it has not learnt it makes something from their letters. Two things in one picture it has seen at
a quarter of the area each. Measured by `python evaluation/emoji.py`; pictures: `docs/emoji/`."""


def measured(court: Court, whole: Recipe, pictures: int) -> tuple[Figures, dict[str, Image.Image]]:
    """Everything, and a picture for each part of it; the contrastive pair is asked about all things that it knows."""
    few = max(8, pictures // 10)
    trained, shown = trials.of_trained_pairs(court, pictures)
    held, held_sheet = trials.of_held_out_pairs(court)
    guidance, guidance_sheet = trials.of_guidance(court, 2 * few)
    seeds, seeds_sheet = trials.of_seeds(court, few)
    negative, negative_sheet = trials.of_negative_prompts(court, few)
    two, two_sheet = trials.of_two_things(court, few)
    figures = {
        "things": len(court.trained.words.names),
        "judges": trials.of_judges(court),
        "trained pairs": trained,
        "held-out pairs": held,
        **guidance,
        "seeds": seeds,
        **negative,
        "autoencoder": trials.of_autoencoder(court),
        "CLIP": trials.of_clip(court.model, data_of(whole, "train"), data_of(whole, "held out")),
        **two,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return figures, {
        "front": grid.grid([to_image(p) for p in court.draw(FRONT, seed=1)], columns=8, labels=FRONT),
        "drawn": grid.grid([to_image(p) for p in shown], columns=12),
        "held-out": held_sheet,
        "guidance": guidance_sheet,
        "seeds": seeds_sheet,
        "negative": negative_sheet,
        "two": two_sheet,
    }


def told(figures: Figures) -> str:
    """The table of what was measured, in Markdown."""
    judges, trained, held = (figures[name] for name in ("judges", "trained pairs", "held-out pairs"))
    vae, (knows, *clip, _) = figures["autoencoder"], figures["CLIP"].values()
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
        f"the same, {trials.MANY} steps of ddim": percent(*figures[f"the same, {trials.MANY} steps of ddim"].values()),
        "autoencoder, held-out renders": f"{vae['PSNR on held-out renders, dB']:.1f} dB",
        f"CLIP, among {knows} things: from held-out renders to captions, back, and back with the style named": percent(
            *clip
        ),
        "two things: each where the words say": percent(sum(two) / len(two)),
        "style by texture alone: trained pairs, held-out pairs, the same on the real renders": percent(
            trained["style by texture"], held["style by texture"], held["style by texture, on the real renders"]
        ),
        "the judges, on renders new to them: thing, style, ground": percent(
            judges["thing"], judges["style"], judges["ground"]
        ),
        f"the judge of textures, on {judges['held-out icons of all things']} held-out icons of all things": percent(
            judges["style by texture, of held-out icons of all things"]
        ),
    }
    missed = trained["things missed at least once"]
    misses = f"Not recognised at least once, of {len(missed)} things: {', '.join(missed)}." if missed else ""
    table = "\n".join(("| | |", "|---|---:|", *(f"| {k} | {v} |" for k, v in rows.items())))
    return "\n\n".join(filter(None, (table, misses, LIMITS)))


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="a shipped model or a folder (default: emoji)")
    parser.add_argument("--pictures", type=int, default=500, help="how many to draw of trained pairs (default: 500)")
    parser.add_argument("--quick", action="store_true", help="teach the judges for a minute only, and write nothing")
    options = parser.parse_args()

    whole, model = read_recipe(ROOT / "recipes" / "emoji.toml"), gradina.load(options.model)
    court = court_of(model, whole, 0.1 if options.quick else 1.0)
    figures, sheets = measured(court, whole, options.pictures)
    print(json.dumps(figures, indent=2))
    if options.model == "emoji" and not options.quick:
        (ROOT / "evaluation" / "emoji.json").write_text(json.dumps(figures, indent=2) + "\n")
        for name, picture in sheets.items():
            picture.save(PAGE / f"{name}.png")
        put_section(ROOT / "docs" / "emoji.md", "## The figures", told(figures), "## What it draws")
        put_section(shipped()["emoji"] / "README.md", "## How good it is", told(figures), "## Use")
    else:
        for name, picture in sheets.items():
            picture.save(Path(f"evaluation-{name}.png"))


if __name__ == "__main__":
    main()
