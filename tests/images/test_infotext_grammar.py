"""The grammar of A1111's text, by value."""

from __future__ import annotations

import pytest

from gradina.images.infotext import KNOWN
from gradina.images.infotext_grammar import Parts, parse

LINE = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 77, Size: 512x768, RNG: CPU"


JSON = '[{"a": 1, "b": [2, "x, y: z"]}]'


PAIRS = {"Steps": "20", "Sampler": "Euler a", "CFG scale": "7", "Seed": "77", "Size": "512x768", "RNG": "CPU"}


def kite(negative: str = "blurry, ugly", prompt: str = "a red kite", rest: str = "", **more: str) -> Parts:
    return Parts(prompt, negative, PAIRS | more, rest)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (f"a red kite\nNegative prompt: blurry, ugly\n{LINE}", kite()),
        (f"a red kite\r\nNegative prompt: blurry, ugly\r\n{LINE}\r\n", kite()),
        (f"a red kite\rNegative prompt: blurry, ugly\r{LINE}", kite()),
        (f"a red kite\n  Negative prompt: blurry, ugly\n {LINE}", kite()),
        (f"a red kite\nNegative prompt: blurry, ugly\n{LINE}\nTemplate: x", kite(rest="Template: x")),
        (f"a red kite\n{LINE}", kite("")),
        (f"Negative prompt: blurry, ugly\n{LINE}", kite(prompt="")),
        (LINE, kite("", "")),
        (f"a red kite\nnegative prompt: blurry, ugly\n{LINE}", kite()),
        (f"a red kite\nNegative Prompt: blurry, ugly\n{LINE}", kite()),
        ("a red kite\nNegative prompt: blurry, ugly\n" + LINE.replace(", ", "\n"), kite()),
        ("a red kite\n" + LINE.replace(", ", "\n") + "\nTemplate: x, Seed: 3", kite("", rest="Template: x, Seed: 3")),
        (f"a red kite\\nNegative prompt: blurry, ugly\\n{LINE}", kite()),
        (f"a red kite\\r\\nNegative prompt: blurry, ugly\\r\\n{LINE}", kite()),
        (f"a red kite<br>Negative prompt: blurry, ugly<br />{LINE}", kite()),
        ("a kite\nSteps: 20, CFG scale: 7,5, Seed: 3, Denoising strength: 0,75",
         Parts("a kite", "", {"Steps": "20", "CFG scale": "7,5", "Seed": "3", "Denoising strength": "0,75"}, "")),
        # all in one line
        (f"a red kite.Negative prompt: blurry, ugly.{LINE}", kite()),
        (f"a red kite, Negative prompt: blurry, ugly, {LINE}", kite()),
        (f"a red kite Negative prompt: blurry, ugly {LINE}", kite()),
        (f"a red kite. {LINE}", kite("")),
        (f"a red kite..., {LINE}", kite("", "a red kite...")),
        (f"a red kite\nNegative prompt: blurry, ugly, {LINE}", kite()),
        (f"a red\nkite Negative prompt: blurry, ugly {LINE}", kite(prompt="a red\nkite")),
        (f"Negative prompt: blurry, ugly, {LINE}", kite(prompt="")),
        (f"a red kite\nNegative prompt: blurry, ugly, {LINE}\nTemplate: x", kite(rest="Template: x")),
        ("a, Negative prompt: b, Sampler: Euler, Steps: 4, Seed: 3",
         Parts("a", "b", {"Sampler": "Euler", "Steps": "4", "Seed": "3"}, "")),
        ("a Model: tall, red, Negative prompt: b, Steps: 4, Seed: 3, Size: 8x8",
         Parts("a Model: tall, red", "b", {"Steps": "4", "Seed": "3", "Size": "8x8"}, "")),
        # a negative prompt that only looks like settings
        ("a red kite\nNegative prompt: a: b, c: d, e: f", Parts("a red kite", "a: b, c: d, e: f", {}, "")),
        ("a kite\nNegative prompt: Steps: 20, x: y, Seed: 3", Parts("a kite", "Steps: 20, x: y, Seed: 3", {}, "")),
        ("a red kite\nNegative prompt: blurry, Size: 3", Parts("a red kite", "blurry, Size: 3", {}, "")),
        # a prompt that only looks like settings, or like a negative prompt
        ("a kite\na: b, c: d, e: f", Parts("a kite\na: b, c: d, e: f", "", {}, "")),
        ("style: photo, mood: dark, colour: red", Parts("style: photo, mood: dark, colour: red", "", {}, "")),
        ("a sign: exit, Seed: 3, x: y", Parts("a sign: exit, Seed: 3, x: y", "", {}, "")),
        ("a flight of Steps: 20, red", Parts("a flight of Steps: 20, red", "", {}, "")),
        ("Steps: of stone, wet", Parts("Steps: of stone, wet", "", {}, "")),
        (f"no Negative prompt: here\n{LINE}", kite("", "no Negative prompt: here")),
        (f"two Steps: 3, Seed: 4\n{LINE}", kite("", "two Steps: 3, Seed: 4")),
        # every negative line counts, as A1111 has it
        (f"a\nNegative prompt: b\nNegative prompt: c\n{LINE}", kite("b\nc", "a")),
        # settings in another order, or in small letters
        ("a\nSampler: Euler, Steps: 4, Seed: 3", Parts("a", "", {"Sampler": "Euler", "Steps": "4", "Seed": "3"}, "")),
        ("a\nseed: 3, size: 8x8, x: y", Parts("a", "", {"Seed": "3", "Size": "8x8", "x": "y"}, "")),
        ("a\nWild: x, Steps: 4, Seed: 3", Parts("a", "", {"Wild": "x", "Steps": "4", "Seed": "3"}, "")),
        ("a\nsteps: 4, SEED: 3, x: y", Parts("a", "", {"Steps": "4", "Seed": "3", "x": "y"}, "")),
        # quoted values
        (f'a\n{LINE}, W: "x\ny, z: \\"w\\"", V: 1', kite("", "a", W='x\ny, z: "w"', V="1")),
        (f'a\n{LINE}, W: "x\nSteps: 3, y", V: 1', kite("", "a", W="x\nSteps: 3, y", V="1")),
        (f'a\n{LINE}, W: "x\\ny\\u00e9\\\\"', kite("", "a", W="x\nyé\\")),
        (f'a\n{LINE}, W: "x", V: "y"', kite("", "a", W="x", V="y")),
        (f'a\n{LINE}, W: "x" and y, V: "', kite("", "a", W='"x" and y', V='"')),
        (f'a\n{LINE}, W: "bad \\q escape"', kite("", "a", W='"bad \\q escape"')),
        (f"a\n{LINE}, Model: my:model", kite("", "a", Model="my:model")),
        # JSON without quotes, as Civitai and stable-diffusion.cpp write
        (f"a\n{LINE}, C: {JSON}, V: 1", kite("", "a", C=JSON, V="1")),
        (f"a\n{LINE}, C: [x, V: 1", kite("", "a", C="[x", V="1")),
        (f"a\n{LINE}, C: {'[' * 5000}, V: 1", kite("", "a", C="[" * 5000, V="1")),
        ("", Parts("", "", {}, "")),
        ("{red|blue} kite", Parts("{red|blue} kite", "", {}, "")),
    ],
)  # fmt: skip
def test_parse(text: str, parts: Parts) -> None:
    assert parse(text, KNOWN) == parts


@pytest.mark.parametrize(
    "evil",
    ["Steps: 1, " * 20_000, "Steps: 1\n" * 20_000, 'Steps: 1, a:"\n' * 10_000, " " * 200_000 + "x", "a:[" * 50_000,
     "x Steps: 1, Seed: 1 " * 10_000, 'a:"\\' * 50_000, "Negative prompt:" * 10_000],
)  # fmt: skip
def test_parsing_time_is_linear(evil: str) -> None:
    """Quadratic time would take minutes."""
    assert parse(f"x{evil}", KNOWN).prompt.startswith("x")
    assert parse(f"x\nSteps: 20, {evil}", KNOWN).prompt.startswith("x")
