"""New words: what a tokenizer makes of them, and that everything else stays as it was, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradina.adapters.textual_inversion import Concept, with_concepts
from gradina.errors import WeightsError
from gradina.models.tokenizer import Tokenizer
from gradina.pipeline.model import StableDiffusion

Tiny = Callable[..., StableDiffusion]


def vectors(count: int, width: int = 32) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


def test_a_placeholder_is_read_as_its_own_tokens() -> None:
    tokenizer = Tokenizer.clip()
    more = tokenizer.with_placeholder("<teddy>", 3)
    assert len(more) == len(tokenizer) + 3
    a, bear = tokenizer.ids("a"), tokenizer.ids("bear")
    assert more.ids("a <teddy> bear") == [*a, 49408, 49409, 49410, *bear]
    assert more.ids("A <TEDDY>, bear")[:4] == [*a, 49408, 49409, 49410]
    assert more.ids("a bear") == tokenizer.ids("a bear")
    assert tokenizer.ids("<teddy>") != [49408]
    assert more.decode([*a, 49408, 49409, 49410, *bear]) == "a <teddy>bear"
    two = more.with_placeholder("sks2024x")
    assert two.ids("sks2024x <teddy>") == [49411, 49408, 49409, 49410]
    assert two.ids("sks2024xy") != [49411], "no beginning of another word"


def test_each_vector_counts_as_a_token_of_a_chunk() -> None:
    more = Tokenizer.clip(length=10).with_placeholder("<teddy>", 4)
    assert more.chunks(["<teddy> <teddy> a"]).shape == (1, 2, 10)
    assert more.chunk_count("<teddy> <teddy> a") == 2
    assert more.with_length(20).ids("<teddy> a") == more.ids("<teddy> a")


def test_placeholders_are_saved_with_the_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, more = tmp_path_factory.mktemp("tokens"), Tokenizer.clip().with_placeholder("<teddy>", 2)
    more.save(folder)
    assert Tokenizer.load(folder).ids("a <teddy> bear") == more.ids("a <teddy> bear")


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("cat", "'cat' is a token of this model already; choose another word, such as <cat>"),
        ("Cat", "'Cat' is a token of this model already"),
        ("a b", "'a b': expected a word without spaces"),
        ("", "'': expected a word without spaces"),
    ],
)
def test_a_placeholder_that_is_no_new_word_is_refused(word: str, words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        Tokenizer.clip().with_placeholder(word)


def test_a_placeholder_cannot_be_added_twice() -> None:
    more = Tokenizer.clip().with_placeholder("<teddy>", 2)
    for word in ("<teddy>", "<Teddy>"):
        with pytest.raises(WeightsError, match="is a token of this model already"):
            more.with_placeholder(word)


WORDS = ("<toy>", "<toy>_1", "<toy>_1_1", "<toy>_2", "toy", "toy-1", "my-toy", "my-toy-2", "<my-toy>", "<Übung>")


@given(order=st.permutations(WORDS), count=st.integers(1, len(WORDS)), sizes=st.lists(st.integers(1, 4), min_size=10))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_vectors_of_a_placeholder_are_independent_of_others(
    tiny_model: Tiny, order: list[str], count: int, sizes: list[int]
) -> None:
    model = tiny_model("sd1")
    concepts = [Concept(word, vectors(k) + i) for i, (word, k) in enumerate(zip(order[:count], sizes, strict=False))]
    tokenizer, text = with_concepts(model.tokenizer, model.text, concepts)
    for concept in concepts:
        for prompt in (f"a {concept.token} boat", f"a {concept.token.upper()} boat"):
            read = text.token.weight[tokenizer.ids(prompt)]
            a, boat = (text.token.weight[tokenizer.ids(part)] for part in ("a", "boat"))
            assert torch.equal(read, torch.cat([a, concept.vectors, boat]))


def test_placeholders_of_clashing_token_names_are_not_saved_together(tmp_path: Path) -> None:
    """transformers knows the tokens of a word by their names alone."""
    more = Tokenizer.clip().with_placeholder("<toy>", 2).with_placeholder("<toy>_1")
    with pytest.raises(WeightsError, match=r"the words <toy>, .*: one has the name of another's tokens"):
        more.save(tmp_path)
    with pytest.raises(WeightsError, match="save them apart"):
        Tokenizer.clip().with_placeholder("<toy>").with_placeholder("<toy>_1").save(tmp_path)


def test_two_files_with_the_same_placeholder_are_refused(tiny_model: Tiny) -> None:
    model = tiny_model("sd1")
    concepts = [
        Concept("<Toy>", vectors(1), Path("a.safetensors")),
        Concept("<toy>", vectors(1), Path("b.safetensors")),
    ]
    with pytest.raises(
        WeightsError,
        match=r"b.safetensors: teaches the word <toy>, as a.safetensors does; name another, by WORD=b.safe",
    ):
        with_concepts(model.tokenizer, model.text, concepts)
    with pytest.raises(WeightsError, match=r"a.safetensors: 'seven' is a token of this model already; .* by WORD=FILE"):
        with_concepts(model.tokenizer, model.text, [Concept("seven", vectors(1), Path("a.safetensors"))])
    with pytest.raises(WeightsError, match=r"a.safetensors: its vectors have 9 numbers"):
        with_concepts(model.tokenizer, model.text, [Concept("<toy>", vectors(1, 9), Path("a.safetensors"))])


def test_all_other_rows_stay_as_they_were(tiny_model: Tiny) -> None:
    model = tiny_model("sd1")
    before = model.text.token.weight.clone()
    concepts = [Concept("<one>", vectors(2)), Concept("<two>", vectors(1))]
    tokenizer, text = with_concepts(model.tokenizer, model.text, concepts)
    assert torch.equal(text.token.weight[: len(before)], before)
    assert torch.equal(text.token.weight[len(before) :], torch.cat([vectors(2), vectors(1)]))
    assert torch.equal(model.text.token.weight, before)
    assert text.config.vocabulary == len(tokenizer) == len(before) + 3
    plain = model.tokenizer(["a red boat"])
    assert torch.equal(tokenizer(["a red boat"]), plain)
    assert torch.equal(text(plain), model.text(plain))
    assert not torch.equal(text(tokenizer(["a <one> boat"]))[:, 2], text(tokenizer(["a <two> boat"]))[:, 2])


def test_vectors_of_another_family_are_refused(tiny_model: Tiny) -> None:
    model = tiny_model("sd1")
    with pytest.raises(WeightsError, match="<one>: its vectors have 768 numbers, this model's words 32; take one that"):
        with_concepts(model.tokenizer, model.text, [Concept("<one>", vectors(1, 768))])
