"""Textual inversion: a new word, which is some rows of the text tower's embedding and nothing else.

Source: Gal et al., "An Image is Worth One Word" (2208.01618), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gradina.adapters.inject import shallow_clone
from gradina.errors import WeightsError
from gradina.models.clip import TextTower
from gradina.models.tokenizer import Tokenizer, as_placeholder


@dataclass(frozen=True, eq=False)
class Concept:
    """A word that was learnt: how it is written, and its vectors (k, width), of which each is read as a token."""

    token: str
    vectors: Tensor
    file: Path | None = None  # where it comes from, for messages

    @property
    def source(self) -> str:
        """Its file, or else its word, for messages."""
        return self.token if self.file is None else str(self.file)


def with_concepts(tokenizer: Tokenizer, text: TextTower, concepts: Sequence[Concept]) -> tuple[Tokenizer, TextTower]:
    """A tokenizer and a text tower that know the concepts; all other rows are the same, and these two stay as they are.

    Raises WeightsError for a word that the tokenizer has already, one that two concepts teach, or vectors of another
    width.
    """
    words: dict[str, Concept] = {}
    for concept in concepts:
        width = concept.vectors.shape[-1]
        if width != text.config.width:
            raise WeightsError(
                f"{concept.source}: its vectors have {width} numbers, this model's words {text.config.width}; "
                "take one that was made for this family"
            )
        first = words.setdefault(as_placeholder(concept.token), concept)
        if first is not concept:
            raise WeightsError(
                f"{concept.source}: teaches the word {concept.token}, as {first.source} does; "
                f"name another, by WORD={concept.source}"
            )
        try:
            tokenizer = tokenizer.with_placeholder(concept.token, len(concept.vectors))
        except WeightsError as error:
            of_file = concept.file is not None
            raise WeightsError(f"{concept.file}: {error}, by WORD=FILE" if of_file else str(error)) from error
    other = shallow_clone(text)
    known = text.token.weight
    new = [concept.vectors.to(known) for concept in concepts]
    rows = torch.cat([known.detach()[: len(tokenizer) - sum(map(len, new))], *new])
    other.token = nn.Embedding(len(rows), rows.shape[1], _weight=rows).requires_grad_(False)
    other.config = replace(text.config, vocabulary=len(rows))
    return tokenizer, other
