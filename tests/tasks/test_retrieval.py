"""Captions for pictures and pictures for words: beside transformers, and with a pair that knows four colours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from gradina.errors import PictureError, RequestError, WeightsError
from gradina.pipeline.load import load
from gradina.pipeline.model import StableDiffusion
from gradina.tasks.retrieval import (
    BEAM_WIDTH,
    Caption,
    describe,
    embed_pictures,
    embed_texts,
    open_pair,
    preprocess,
    scores,
    search,
)
from gradina.weights import registry
from gradina.weights.formats.clip import ContrastivePair, write_pair

Squares = dict[str, Image.Image]
TOLERANCE = 1e-4


def photo(width: int, height: int) -> Image.Image:
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(255, 0, height))
    return Image.fromarray(np.stack([across, down, 255 - across], 2).astype(np.uint8))


def test_scores_equal_those_of_transformers(pair: ContrastivePair, squares: Squares, tmp_path: Path) -> None:
    write_pair(pair, tmp_path / "pair")
    model, processor = (kind.from_pretrained(tmp_path / "pair") for kind in (CLIPModel, CLIPProcessor))
    pictures = [*squares.values(), photo(61, 45), photo(20, 133)]
    texts = ["a red square", "blue", "a boat in a harbour at night, oil on canvas"]  # the last one is cut off
    with torch.no_grad():
        given = processor(text=texts, images=pictures, return_tensors="pt", padding=True, truncation=True)
        expected = model(**given).logits_per_image
    ours = scores(pair, embed_pictures(pair, pictures), embed_texts(pair, texts))
    assert torch.allclose(ours, expected, atol=TOLERANCE)
    shares = {caption.text: caption.probability for caption in describe(pair, pictures, texts)[4]}
    assert torch.allclose(torch.tensor([shares[text] for text in texts]), expected[4].softmax(0), atol=TOLERANCE)


def test_embeddings_have_unit_norm_in_every_dtype(pair: ContrastivePair, squares: Squares) -> None:
    many = [*squares.values()] * 9  # more than pass through the tower together
    for embeddings in (embed_pictures(pair, many), embed_texts(pair, ["red", "blue"] * 20)):
        assert torch.allclose(embeddings.norm(dim=1), torch.ones(len(embeddings)), atol=1e-5)
    assert torch.allclose(embed_pictures(pair, many)[-4:], embed_pictures(pair, many[-4:]), atol=1e-6)
    assert embed_pictures(pair, []).shape == (0, 16)
    assert embed_texts(pair, []).shape == (0, 16)


def test_preprocess_composites_files_and_images_over_white(
    pair: ContrastivePair, squares: Squares, tmp_path: Path
) -> None:
    clear = Image.new("RGBA", (24, 24), (0, 0, 0, 0))
    clear.paste((200, 30, 30, 255), (5, 5, 19, 19))
    clear.save(tmp_path / "clear.png")
    expected = preprocess(pair, squares["red"])
    assert expected.shape == (3, 16, 16)
    assert -1 <= expected.min() < expected.max() <= 1
    for picture in (clear, tmp_path / "clear.png", str(tmp_path / "clear.png")):
        assert torch.equal(preprocess(pair, picture), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (5000, 2)])
def test_any_aspect_ratio_is_preprocessed(pair: ContrastivePair, size: tuple[int, int]) -> None:
    assert preprocess(pair, Image.new("RGB", size, "white")).eq(1).all()


def test_files_that_are_no_pictures_are_refused(pair: ContrastivePair, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "none.png"):
        with pytest.raises(PictureError, match=name):
            embed_pictures(pair, [tmp_path / name])


def test_describe_ranks_phrases(pair: ContrastivePair, squares: Squares) -> None:
    phrases = [f"a {name} square" for name in squares]
    for name, captions in zip(squares, describe(pair, list(squares.values()), phrases), strict=True):
        assert captions[0].text == f"a {name} square"
        assert captions[0].probability > 0.8
        assert sum(caption.probability for caption in captions) == pytest.approx(1, abs=1e-5)
        assert [c.probability for c in captions] == sorted((c.probability for c in captions), reverse=True)
    assert len(describe(pair, [squares["red"]], phrases, best=2)[0]) == 2
    assert describe(pair, [squares["red"]], ["x", " ", "x"]) == [[Caption("x", 1.0)]]


def test_describe_composes_captions_of_parts(pair: ContrastivePair, squares: Squares) -> None:
    for name, captions in zip(squares, describe(pair, list(squares.values())), strict=True):
        assert {caption.text for caption in captions[:2]} == {f"a {name} square", f"a {name} square on white"}
        assert len(captions) == 5
        assert captions[0].probability + captions[1].probability > 0.8


def test_a_full_beam_equals_an_exhaustive_search(pair: ContrastivePair, squares: Squares) -> None:
    whole = [f"{a} {b} {c}".strip() for a in pair.phrases[0] for b in pair.phrases[1] for c in pair.phrases[2]]
    assert len(whole) <= BEAM_WIDTH
    for one, two in zip(
        describe(pair, list(squares.values())), describe(pair, list(squares.values()), whole), strict=True
    ):
        assert [caption.text for caption in one] == [caption.text for caption in two]
        assert [c.probability for c in one] == pytest.approx([c.probability for c in two], abs=1e-5)


def test_a_description_does_not_depend_on_the_batch(pair: ContrastivePair, squares: Squares) -> None:
    many = replace(pair, phrases=(tuple(f"a {n} {c}" for n in range(20) for c in squares), ("", "square", "on white")))
    together = describe(many, list(squares.values()))
    for picture, expected in zip(squares.values(), together, strict=True):
        alone = describe(many, [picture])[0]
        assert [caption.text for caption in alone] == [caption.text for caption in expected]


def test_empty_parts_change_nothing(pair: ContrastivePair, squares: Squares) -> None:
    odd = replace(pair, phrases=(("", " a red "), ("", "square")))
    texts = {caption.text for caption in describe(odd, [squares["red"]], best=9)[0]}
    assert texts == {"a red", "a red square", "square"}


def test_no_phrases_are_refused_and_no_pictures_give_nothing(pair: ContrastivePair, squares: Squares) -> None:
    with pytest.raises(RequestError, match="phrases: colours has none of its own; give the texts to choose from"):
        describe(replace(pair, phrases=()), [squares["red"]])
    for phrases in ([], ["", " "]):
        with pytest.raises(RequestError, match="phrases: none were given"):
            describe(pair, [squares["red"]], phrases)
    assert describe(pair, []) == []
    assert search(pair, [], "red") == []


def test_search_ranks_pictures(pair: ContrastivePair, squares: Squares) -> None:
    pictures = list(squares.values())
    for i, name in enumerate(squares):
        hits = search(pair, pictures, f"a {name} square")
        assert hits[0].index == i
        assert sorted(hit.index for hit in hits) == [0, 1, 2, 3]
        assert 1 >= hits[0].score > hits[1].score >= hits[2].score >= -1
        assert hits == search(pair, embed_pictures(pair, pictures), f"a {name} square")
    with pytest.raises(RequestError, match="words: got none"):
        search(pair, pictures, " ")


def test_open_pair_takes_every_kind_of_name(
    pair: ContrastivePair, tiny_model: Callable[..., StableDiffusion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    monkeypatch.setattr(registry, "ASSETS", assets)
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "emoji"):
        tiny_model().save(assets / name)
    write_pair(pair, assets / "emoji" / "clip")
    write_pair(pair, tmp_path / "alone", torch.float16)
    expected = embed_texts(pair, ["a red square"])
    model = load("emoji")
    for source, name in (
        (None, "emoji"), ("emoji", "emoji"), (assets / "emoji", str(assets / "emoji")), ("alone", "alone"),
        (assets / "emoji" / "clip", str(assets / "emoji" / "clip")), (model, "emoji"),
    ):  # fmt: skip
        opened = open_pair(source, device="cpu")
        assert opened.name == name
        assert opened.dtype == torch.float32
        assert opened.phrases == pair.phrases
        assert torch.allclose(embed_texts(opened, ["a red square"]), expected, atol=1e-2 if name == "alone" else 1e-6)
    assert open_pair("alone", dtype="bf16").dtype == torch.bfloat16
    (tmp_path / "emoji").mkdir()  # a folder of that name, with no model in it
    assert open_pair("emoji").name == "emoji"


def test_a_model_without_an_image_tower_is_refused(
    pair: ContrastivePair, tiny_model: Callable[..., StableDiffusion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "ASSETS", tmp_path / "assets")
    tiny_model().save(tmp_path / "model")
    (tmp_path / "model.safetensors").write_bytes(b"")
    for source in (tmp_path / "model", str(tmp_path / "model.safetensors")):
        with pytest.raises(WeightsError, match=r"has no image tower \(expected clip/ .*shipped with one: none"):
            open_pair(source)
    (tmp_path / "assets").mkdir()
    tiny_model().save(tmp_path / "assets" / "digits")
    tiny_model().save(tmp_path / "assets" / "emoji")
    for source, name in ((None, "emoji"), ("digits", "digits")):
        with pytest.raises(WeightsError, match=rf"^{name}: has no image tower .*shipped with one: none$"):
            open_pair(source)
    write_pair(pair, tmp_path / "assets" / "emoji" / "clip")
    with pytest.raises(WeightsError, match=r"digits: has no image tower .*shipped with one: emoji$"):
        open_pair("digits")
    with pytest.raises(WeightsError, match="no such folder or file"):
        open_pair(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="tiny: came without an image tower"):
        open_pair(tiny_model())


def test_open_pair_from_the_hub(pair: ContrastivePair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(pair, tmp_path / "clip")
    monkeypatch.setattr(
        "gradina.weights.hub.fetch_only", lambda name, kind: {("me/model", "pair"): tmp_path}[name, kind]
    )
    assert open_pair("me/model").name == "me/model"
