"""CLIP's byte-pair encoding: prompts to token ids, the same ids as those of transformers' CLIPTokenizer."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers
from tokenizers import AddedToken

from gradina.errors import WeightsError
from gradina.models import bpe
from gradina.models.tokenizer_files import HIDDEN, find_multi_token, read_merges, read_tokenizer, write_tokenizer

if TYPE_CHECKING:
    from torch import Tensor


def as_placeholder(text: str) -> str:
    """A text as a placeholder token, which is one word of a prompt: normalized, with hyphens for spaces."""
    return bpe.normalized("-".join(bpe.valid_text(text).split()))


class Tokenizer:
    """Prompts to token ids and back, with the vocabulary of CLIP, of a checkpoint, or learned from captions.

    Made by `Tokenizer.clip`, `Tokenizer.load` or `Tokenizer.train`. `length` is the context length in tokens; `bos`,
    `eos` and `pad` are ids. A pad token other than `eos` is a special token, as in transformers: with `pad=0`
    (Stable Diffusion 2) every "!" of a prompt becomes id 0.
    """

    def __init__(
        self,
        engine: tokenizers.Tokenizer,
        length: int,
        bos: int,
        eos: int,
        pad: int,
        multi_token: Mapping[int, list[int]] | None = None,
    ) -> None:
        if length < 3:
            raise ValueError(f"a context length of {length} has no room between start and end: use 3 or more")
        self.length, self.bos, self.eos, self.pad = length, bos, eos, pad
        self._engine = engine
        added = {token.content: i for i, token in engine.get_added_tokens_decoder().items()}
        self._multi_token = dict(find_multi_token(added) if multi_token is None else multi_token)

    @classmethod
    def clip(cls, length: int = 77, pad: int | None = None) -> Tokenizer:
        """CLIP's shipped 49408 entries (Radford et al. 2103.00020); `pad` is `eos` for Stable Diffusion 1, 0 for 2."""
        lines = gzip.decompress(bpe.ASSET.read_bytes()).decode().split("\n")
        return cls._from_merges(read_merges(bpe.ASSET, lines), length, pad)

    @classmethod
    def train(cls, captions: Iterable[str], size: int, length: int = 77) -> Tokenizer:
        """A vocabulary of CLIP's form, of at most `size` entries, learned from captions; it can encode any text.

        The same captions, in any order, give the same vocabulary. Raises ValueError for a size below 514.
        Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units".
        """
        smallest = len(bpe.vocabulary_of([]))
        if size < smallest:
            raise ValueError(f"a vocabulary of {size} is too small: use {smallest} (every byte, start and end) or more")
        return cls._from_merges(bpe.learn_merges(captions, size - smallest), length, None)

    @classmethod
    def _from_merges(cls, merges: Sequence[bpe.Merge], length: int, pad: int | None) -> Tokenizer:
        vocabulary = bpe.vocabulary_of(merges)
        tokens, bos, eos = list(vocabulary), vocabulary[bpe.BOS], vocabulary[bpe.EOS]
        pad = eos if pad is None else pad
        if not 0 <= pad < len(tokens):
            raise ValueError(f"pad id {pad} is outside the vocabulary: use 0 to {len(tokens) - 1}")
        special = [AddedToken(tokens[i], special=True) for i in sorted({bos, eos, pad})]
        return cls(bpe.build_engine(vocabulary, merges, bpe.EOS, special), length, bos, eos, pad)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer of a diffusers or transformers folder. Raises WeightsError, naming the malformed file."""
        return cls(*read_tokenizer(Path(folder)))

    def with_placeholder(self, word: str, tokens: int = 1) -> Tokenizer:
        """A tokenizer with one more word, in upper or lower case, that becomes so many tokens at the vocabulary's end.

        No other word, whatever its name, becomes one of these tokens. Raises WeightsError for a word that is a token
        already, or that no prompt could contain.
        """
        if not word.strip() or len(word.split()) != 1 or word != bpe.valid_text(word):
            raise WeightsError(f"{word!r}: expected a word without spaces, such as <teddy>")
        lower = as_placeholder(word)
        added = {as_placeholder(token.content) for token in self._engine.get_added_tokens_decoder().values()}
        if {lower, lower + bpe.SUFFIX} & (added | self._engine.get_vocab(with_added_tokens=False).keys()):
            raise WeightsError(f"{word!r} is a token of this model already; choose another word, such as <{word}>")
        engine = tokenizers.Tokenizer.from_str(self._engine.to_str())
        names = [lower, *(f"{HIDDEN}{lower}_{i}" for i in range(1, tokens))]
        engine.add_tokens([AddedToken(name, single_word=name.isalnum(), normalized=True) for name in names])
        ids = engine.get_vocab(with_added_tokens=True)
        first, *more = (ids[name] for name in names)
        return Tokenizer(engine, self.length, self.bos, self.eos, self.pad, {**self._multi_token, first: more})

    def with_length(self, length: int) -> Tokenizer:
        """The same tokenizer with another context length."""
        return Tokenizer(self._engine, length, self.bos, self.eos, self.pad, self._multi_token)

    def save(self, folder: str | Path) -> None:
        """Writes the files that transformers has. Raises WeightsError where two placeholders would share a name."""
        ids = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad}
        write_tokenizer(self._engine, self.length, ids, self._multi_token, Path(folder))

    def __len__(self) -> int:
        """How many entries the vocabulary has: the rows of a text tower's token embedding."""
        return self._engine.get_vocab_size(with_added_tokens=True)

    def ids(self, text: str) -> list[int]:
        """The bare ids of a text of any length: no start, no end, no padding."""
        ids: list[int] = self._engine.encode(bpe.valid_text(text), add_special_tokens=False).ids
        return [i for first in ids for i in (first, *self._multi_token.get(first, ()))] if self._multi_token else ids

    def token(self, i: int) -> str:
        """The entry of the vocabulary with that id."""
        return str(self._engine.id_to_token(i))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids of shape (n,), in lower case with spaces between words; special tokens are left out."""
        further = {i for more in self._multi_token.values() for i in more}
        text = self._engine.decode([int(i) for i in ids if int(i) not in further], skip_special_tokens=True)
        return text.replace(bpe.SUFFIX, " ").strip()

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Ids of shape (b, length), int64: start, at most length - 2 tokens, end, padding; a longer text is cut off."""
        return self._framed([row[: self.length - 2] for row in self._rows(texts)], 1)[:, 0]

    def chunks(self, texts: str | Sequence[str | list[int]]) -> Tensor:
        """Ids (b, n, length), int64, of texts or bare ids: a long one takes several chunks, each with start and end.

        n is that of the longest text; the others have empty chunks at the end. Source: A1111's web UI.
        """
        rows = self._rows(texts)
        return self._framed(rows, max([1, *(math.ceil(len(row) / (self.length - 2)) for row in rows)]))

    def chunk_count(self, text: str | list[int]) -> int:
        """The number of chunks that a text, or its bare ids, takes."""
        return max(1, math.ceil(len(self._rows([text])[0]) / (self.length - 2)))

    def _rows(self, texts: str | Sequence[str | list[int]]) -> list[list[int]]:
        texts = [texts] if isinstance(texts, str) else texts
        return [self.ids(text) if isinstance(text, str) else text for text in texts]

    def _framed(self, rows: list[list[int]], n: int) -> Tensor:
        import torch  # here, so that counting tokens does not import it

        capacity = self.length - 2
        pieces = [row[i * capacity : (i + 1) * capacity] for row in rows for i in range(n)]
        framed = [[self.bos, *ids, self.eos] + [self.pad] * (capacity - len(ids)) for ids in pieces]
        return torch.tensor(framed, dtype=torch.long).reshape(len(rows), n, self.length)
