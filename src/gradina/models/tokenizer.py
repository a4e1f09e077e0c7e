"""CLIP's byte-pair encoding: prompts to token ids, the same ids as those of transformers' CLIPTokenizer."""

from __future__ import annotations

import gzip
import json
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from gradina.errors import WeightsError
from gradina.models.tokenizer_files import (
    AGAIN,
    BOS,
    EOS,
    SUFFIX,
    Merge,
    read_merges,
    read_model,
    read_optional,
    read_special,
)

if TYPE_CHECKING:
    from torch import Tensor

ASSET = Path(__file__).parents[1] / "assets" / "clip_merges.txt.gz"
PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
NORMALIZER = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])  # of prompts, but for spaces
HIDDEN = "\ue000"  # before the names of a placeholder's further tokens, so that no prompt has them by chance


def base_tokens() -> list[str]:
    """The 512 tokens that can encode any text: a printable letter per byte, then the same at the end of a word."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    return letters + [letter + SUFFIX for letter in letters]


def vocabulary_of(merges: Iterable[Merge]) -> dict[str, int]:
    """Token to id in CLIP's order: 512 base tokens, one token for each merge, start, end."""
    tokens = dict.fromkeys([*base_tokens(), *(left + right for left, right in merges), BOS, EOS])
    return {token: i for i, token in enumerate(tokens)}


def _engine(
    vocabulary: Mapping[str, int], merges: Sequence[Merge], unknown: str | None, added: Sequence[AddedToken]
) -> tokenizers.Tokenizer:
    """Set up as transformers does it; letters that the vocabulary lacks become `unknown`."""
    settings = {"continuing_subword_prefix": "", "end_of_word_suffix": SUFFIX, "unk_token": unknown}
    engine = tokenizers.Tokenizer(models.BPE(dict(vocabulary), merges, **settings))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    engine.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True)
    engine.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    engine.decoder = decoders.ByteLevel()
    engine.add_tokens(list(added))
    return engine


def _learn_merges(captions: Iterable[str], most: int) -> list[Merge]:
    """The `most` most frequent merges, or fewer where no pair of tokens occurs twice."""
    # One character for each base token, so that ties are broken by our order and not by that of a hash table.
    character = {token: chr(0xE000 + i) for i, token in enumerate(base_tokens())}
    token = {value: key for key, value in character.items()}
    reader = _engine({}, [], None, [])
    words = (
        "".join(character[letter] for letter in [*word[:-1], word[-1] + SUFFIX])
        for caption in captions
        for word, _ in reader.pre_tokenizer.pre_tokenize_str(reader.normalizer.normalize_str(_valid(caption)))
    )
    size, alphabet = len(token) + most, list(token)
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False, initial_alphabet=alphabet)
    learner = tokenizers.Tokenizer(models.BPE())
    learner.train_from_iterator(words, trainer)
    found = json.loads(learner.to_str())["model"]["merges"]
    return [("".join(token[c] for c in left), "".join(token[c] for c in right)) for left, right in found]


def normalized(text: str) -> str:
    """A text as prompts are normalized before they are encoded: composed Unicode, lower case."""
    return str(NORMALIZER.normalize_str(text))


def as_placeholder(text: str) -> str:
    """A text as a placeholder token, which is one word of a prompt: normalized, with hyphens for spaces."""
    return normalized("-".join(_valid(text).split()))


def _multi_token(added: Mapping[str, int]) -> dict[int, list[int]]:
    """The further tokens of placeholders that have several, by the first: NAME_1, NAME_2, ..., as in diffusers."""
    found = {}
    for name, first in added.items():
        names = takewhile(added.__contains__, (f"{name}_{i}" for i in count(1)))
        if more := [added[other] for other in names]:
            found[first] = more
    return found


def _valid(text: str) -> str:
    """The text with a question mark for each lone surrogate, which a command line can contain."""
    return text.encode("utf-8", "replace").decode()


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
        self._multi_token = dict(_multi_token(added) if multi_token is None else multi_token)

    @classmethod
    def clip(cls, length: int = 77, pad: int | None = None) -> Tokenizer:
        """CLIP's own vocabulary of 49408 entries, shipped; `pad` is `eos` for Stable Diffusion 1, and 0 for 2.

        Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
        """
        lines = gzip.decompress(ASSET.read_bytes()).decode().split("\n")
        return cls._from_merges(read_merges(ASSET, lines), length, pad)

    @classmethod
    def train(cls, captions: Iterable[str], size: int, length: int = 77) -> Tokenizer:
        """A vocabulary of CLIP's form, of at most `size` entries, learned from captions; it can encode any text.

        The same captions, in any order, give the same vocabulary. Raises ValueError for a size below 514.
        Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units".
        """
        smallest = len(vocabulary_of([]))
        if size < smallest:
            raise ValueError(f"a vocabulary of {size} is too small: use {smallest} (every byte, start and end) or more")
        return cls._from_merges(_learn_merges(captions, size - smallest), length, None)

    @classmethod
    def _from_merges(cls, merges: Sequence[Merge], length: int, pad: int | None) -> Tokenizer:
        vocabulary = vocabulary_of(merges)
        tokens, bos, eos = list(vocabulary), vocabulary[BOS], vocabulary[EOS]
        pad = eos if pad is None else pad
        if not 0 <= pad < len(tokens):
            raise ValueError(f"pad id {pad} is outside the vocabulary: use 0 to {len(tokens) - 1}")
        special = [AddedToken(tokens[i], special=True) for i in sorted({bos, eos, pad})]
        return cls(_engine(vocabulary, merges, EOS, special), length, bos, eos, pad)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer of a diffusers or transformers folder: vocab.json and merges.txt, or tokenizer.json.

        Raises WeightsError, naming the file, for one that is missing or malformed.
        """
        folder = Path(folder)
        config = read_optional(folder / "tokenizer_config.json")
        length = config.get("model_max_length", 77)
        if not isinstance(length, int | float) or length < 3:
            raise WeightsError(f"{folder}: model_max_length is {reprlib.repr(length)}, expected 3 or more; {AGAIN}")
        try:
            vocabulary, merges, added = read_model(folder)
            roles, added = read_special(folder, config, added)
            unknown = roles["unk_token"].content if roles["unk_token"].content in vocabulary else None
            engine = _engine(vocabulary, merges, unknown, [added[i] for i in sorted(added)] + list(roles.values()))
            ids = engine.get_vocab(with_added_tokens=True)
            bos, eos, pad = (ids[roles[key].content] for key in ("bos_token", "eos_token", "pad_token"))
        except WeightsError:
            raise
        except Exception as error:  # tokenizers raises nothing narrower, and in several lines
            reason = " ".join(str(error).split())
            raise WeightsError(f"{folder}: the tokenizer files do not fit together ({reason}); {AGAIN}") from error
        for i, token in added.items():
            if ids.get(token.content) != i:
                raise WeightsError(f"{folder}: the added token {token.content!r} cannot have id {i}; {AGAIN}")
        return cls(engine, int(length) if length < 1e6 else 77, bos, eos, pad)  # transformers writes 1e30 for "unknown"

    def with_placeholder(self, word: str, tokens: int = 1) -> Tokenizer:
        """A tokenizer with one more word, in upper or lower case, that becomes so many tokens at the vocabulary's end.

        No other word, whatever its name, becomes one of these tokens. Raises WeightsError for a word that is a token
        already, or that no prompt could contain.
        """
        if not word.strip() or len(word.split()) != 1 or word != _valid(word):
            raise WeightsError(f"{word!r}: expected a word without spaces, such as <teddy>")
        lower = as_placeholder(word)
        added = {as_placeholder(token.content) for token in self._engine.get_added_tokens_decoder().values()}
        if {lower, lower + SUFFIX} & (added | self._engine.get_vocab(with_added_tokens=False).keys()):
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
        """Writes vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json as transformers has them.

        Raises WeightsError where two placeholders' tokens would have the same names there.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        model = json.loads(self._engine.to_str())["model"]
        vocabulary = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
        ids = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad}
        named = {key: self._engine.id_to_token(i) for key, i in ids.items()} | {"unk_token": model["unk_token"] or EOS}
        config = named | {
            "add_prefix_space": False,
            "added_tokens_decoder": self._added(),
            "clean_up_tokenization_spaces": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": self.length,
            "tokenizer_class": "CLIPTokenizer",
        }
        for name, text in {
            "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
            "merges.txt": "\n".join(["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]),
            "tokenizer_config.json": json.dumps(config, indent=2, sort_keys=True),
            "special_tokens_map.json": json.dumps(named, indent=2, sort_keys=True),
        }.items():
            (folder / name).write_text(text + "\n", encoding="utf-8", newline="\n")

    def _added(self) -> dict[str, dict[str, Any]]:
        """The added tokens as transformers writes them."""
        tokens = dict(sorted(self._engine.get_added_tokens_decoder().items()))
        states = {i: {**t.__getstate__(), "content": t.content.removeprefix(HIDDEN)} for i, t in tokens.items()}
        names = {state["content"]: i for i, state in states.items()}
        several = {first: more for first, more in self._multi_token.items() if more}
        if len(names) < len(states) or _multi_token(names) != several:
            words = ", ".join(token.content for token in tokens.values() if not token.special)
            raise WeightsError(f"the words {words}: one has the name of another's tokens; save them apart")
        return {str(i): state for i, state in states.items()}

    def __len__(self) -> int:
        """How many entries the vocabulary has: the rows of a text tower's token embedding."""
        return self._engine.get_vocab_size(with_added_tokens=True)

    def ids(self, text: str) -> list[int]:
        """The bare ids of a text of any length: no start, no end, no padding."""
        ids: list[int] = self._engine.encode(_valid(text), add_special_tokens=False).ids
        return [i for first in ids for i in (first, *self._multi_token.get(first, ()))] if self._multi_token else ids

    def token(self, i: int) -> str:
        """The entry of the vocabulary with that id."""
        return str(self._engine.id_to_token(i))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids of shape (n,), in lower case with spaces between words; special tokens are left out."""
        further = {i for more in self._multi_token.values() for i in more}
        text = self._engine.decode([int(i) for i in ids if int(i) not in further], skip_special_tokens=True)
        return text.replace(SUFFIX, " ").strip()

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
