"""How good is the `emoji` model? Classifiers trained here on rendered icons evaluate what it draws.

    python evaluation/emoji.py [--model emoji] [--pictures 500] [--quick]

Prints a table, writes `evaluation/emoji.json`, the pictures of `docs/emoji/` and the figures on its page and its card.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from textwrap import fill

import measurements
import torch
from cards import put_section
from measurements import Evaluation, Figures, data_of, open_evaluation
from PIL import Image

import gradina
from gradina.images import grid
from gradina.images.tensor import to_image
from gradina.training.data.synthetic import RELATIONS
from gradina.training.pretrain.recipes import Recipe, read_recipe
from gradina.weights.registry import shipped

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "emoji"
FRONT = (  # prompts of the picture at the top of the README, one each, not selected
    "a teddy bear on a pink background", "a rocket in fluent-emoji style", "a red apple on a green background",
    "a penguin in noto style on a blue background", "a guitar in twemoji style", "a hamburger on a yellow background",
    "an owl on an orange background", "a house in fluent-emoji-flat style", "a sailboat on a blue background",
    "a cat in twemoji style on a purple background", "a crown", "a rose in noto style on a black background",
    "a bicycle on a gray background", "a butterfly in fluent-emoji style", "a strawberry on a pink background",
    "an elephant in noto style", "a snowman on a blue background", "a pizza in fluent-emoji-flat style",
    "a frog on a brown background", "a tiger in noto style on a green background", "a birthday cake",
    "a soccer ball on a red background", "a sunflower in fluent-emoji style", "an umbrella on a white background",
)  # fmt: skip
LIKENESS = (  # label, figure, format
    ("PSNR to the best-aligned icon, median, dB", "aligned PSNR, dB: median", ".1f"),
    ("the same, 10th percentile, dB", "aligned PSNR, dB: 10th percentile", ".1f"),
    ("edges, relative to the icon's", "edges, relative to the icon's", ".2f"),
    ("rim, grey levels, mean", "rim, grey levels, mean", ".1f"),
    ("KID", "KID", ".4f"),
)
LIMITS = """\
The model draws one of these things at a time, in the middle of a plain background. It was trained on no people, actions
or writing, and draws something arbitrary for words outside its vocabulary. Two things in one picture it has seen at a
quarter of the area each. Measured by `python evaluation/emoji.py`; pictures: `docs/emoji/`."""


def measure(evaluation: Evaluation, recipe: Recipe, pictures: int) -> tuple[Figures, dict[str, Image.Image]]:
    """All figures and sheets; the contrastive pair is measured on all things of the whole recipe."""
    few = max(8, pictures // 10)
    drawn = measurements.draw_trained_pairs(evaluation, pictures)
    trained, worst = measurements.trained_pairs(evaluation, drawn)
    like, like_sheet = measurements.likeness(evaluation, drawn)
    held, held_sheet = measurements.held_out_pairs(evaluation)
    guidance, guidance_sheet = measurements.guidance_scales(evaluation, 2 * few)
    seeds, seeds_sheet = measurements.seed_diversity(evaluation, few)
    negative, negative_sheet = measurements.negative_prompts(evaluation, few)
    two, two_sheet = measurements.two_things(evaluation, few)
    figures = {
        "things": len(evaluation.trained.words.names),
        "judges": measurements.classifier_accuracy(evaluation),
        "trained pairs": trained,
        "likeness": like,
        "held-out pairs": held,
        **guidance,
        "seeds": seeds,
        **negative,
        "autoencoder": measurements.autoencoder_psnr(evaluation),
        "CLIP": measurements.clip_retrieval(evaluation.model, data_of(recipe, "train"), data_of(recipe, "held out")),
        **two,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return figures, {
        "front": grid.grid([to_image(p) for p in evaluation.draw(FRONT, seed=1)], columns=8, labels=FRONT),
        "drawn": grid.grid([to_image(p) for p in worst], columns=12),
        "likeness": like_sheet,
        "held-out": held_sheet,
        "guidance": guidance_sheet,
        "seeds": seeds_sheet,
        "negative": negative_sheet,
        "two": two_sheet,
    }


def table(figures: Figures) -> str:
    """The figures as a Markdown table."""
    classifiers, trained, held = (figures[name] for name in ("judges", "trained pairs", "held-out pairs"))
    vae, (vocabulary, *clip, _) = figures["autoencoder"], figures["CLIP"].values()

    def compared(name: str, form: str) -> str:
        return "; ".join(format(of[name], form) for of in figures["likeness"].values())

    def two(figure: str) -> float:
        return fmean(figures["two things"][relation][figure] for relation in RELATIONS)

    def percent(*values: float) -> str:
        return ", ".join(f"{100 * value:.1f} %" for value in values)

    of_held = f"{held['pictures']} pictures of {held['pairs']} held-out pairs"
    scales, many = figures["thing by guidance scale"], f"the same, {measurements.MANY} steps of ddim"
    icons = classifiers["held-out icons of all things"]
    clip_row = f"CLIP, among {vocabulary} things: held-out renders to captions, back, and back with the style named"
    rows = {
        f"{trained['pictures']} pictures of trained pairs: thing, style, background as in the prompt": percent(
            trained["thing"], trained["style"], trained["ground"]
        ),
        f"{of_held}: thing, style": percent(held["thing"], held["style"]),
        "the same on the real renders of those pairs": percent(
            held["thing, on the real renders"], held["style, on the real renders"]
        ),
        f"thing at guidance scale {', '.join(scales)}": percent(*(at["thing"] for at in scales.values())),
        many: percent(*(at["thing"] for at in figures[many].values())),
        f"rim at guidance scale {', '.join(scales)}, grey levels, mean": ", ".join(
            f"{at['rim, grey levels, mean']:.1f}" for at in scales.values()
        ),
        **{f"{label}: ours; the icons through the autoencoder": compared(name, form) for label, name, form in LIKENESS},
        "autoencoder, held-out renders": f"{vae['PSNR on held-out renders, dB']:.1f} dB",
        clip_row: percent(*clip),
        "two things, each where the prompt puts it, and both": percent(
            two("each, where it should be"), two("both, where they should be")
        ),
        "style by a network: trained pairs, held-out pairs, the same on the real renders": percent(
            trained["style by a network"], held["style by a network"], held["style by a network, on the real renders"]
        ),
        "the classifiers, on held-out renders: thing, style, background": percent(
            classifiers["thing"], classifiers["style"], classifiers["ground"]
        ),
        f"the network of styles, on {icons} held-out icons of all things": percent(
            classifiers["style by a network, of held-out icons of all things"]
        ),
    }
    missed = trained["things missed at least once"]
    misses = f"Not recognised at least once, of {len(missed)} things: {', '.join(missed)}." if missed else ""
    misses = fill(misses, 120)
    lines = "\n".join(("| | |", "|---|---:|", *(f"| {k} | {v} |" for k, v in rows.items())))
    return "\n\n".join(filter(None, (lines, misses, LIMITS)))


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="a shipped model or a folder (default: emoji)")
    parser.add_argument("--pictures", type=int, default=500, help="how many to draw of trained pairs (default: 500)")
    parser.add_argument(
        "--quick", action="store_true", help="train the classifiers for a minute only, and write nothing"
    )
    options = parser.parse_args()

    recipe, model = read_recipe(ROOT / "recipes" / "emoji.toml"), gradina.load(options.model)
    evaluation = open_evaluation(model, recipe, 0.1 if options.quick else 1.0)
    figures, sheets = measure(evaluation, recipe, options.pictures)
    print(json.dumps(figures, indent=2))
    if options.model == "emoji" and not options.quick:
        (ROOT / "evaluation" / "emoji.json").write_text(json.dumps(figures, indent=2) + "\n")
        for name, picture in sheets.items():
            picture.save(PAGE / f"{name}.png")
        put_section(ROOT / "docs" / "emoji.md", "## The figures", table(figures), "## What it draws")
        put_section(shipped()["emoji"] / "README.md", "## How good it is", table(figures), "## Use")
    else:
        for name, picture in sheets.items():
            picture.save(Path(f"evaluation-{name}.png"))


if __name__ == "__main__":
    main()
