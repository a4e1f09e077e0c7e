"""CLIP's byte-pair encoding by the `tokenizers` library: how it is set up, and how a vocabulary is learned."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

BOS, EOS, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"
ASSET = Path(__file__).parents[1] / "assets" / "clip_merges.txt.gz"
PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
NORMALIZER = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])  # of prompts, but for spaces

Merge = tuple[str, str]


def base_tokens() -> list[str]:
    """The 512 tokens that can encode any text: a printable letter per byte, then the same at the end of a word."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    return letters + [letter + SUFFIX for letter in letters]


def vocabulary_of(merges: Iterable[Merge]) -> dict[str, int]:
    """Token to id in CLIP's order: 512 base tokens, one token for each merge, start, end."""
    tokens = dict.fromkeys([*base_tokens(), *(left + right for left, right in merges), BOS, EOS])
    return {token: i for i, token in enumerate(tokens)}


def build_engine(
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


def learn_merges(captions: Iterable[str], most: int) -> list[Merge]:
    """The `most` most frequent merges, or fewer where no pair of tokens occurs twice."""
    # One character for each base token, so that ties are broken by our order and not by that of a hash table.
    character = {token: chr(0xE000 + i) for i, token in enumerate(base_tokens())}
    token = {value: key for key, value in character.items()}
    reader = build_engine({}, [], None, [])
    words = (
        "".join(character[letter] for letter in [*word[:-1], word[-1] + SUFFIX])
        for caption in captions
        for word, _ in reader.pre_tokenizer.pre_tokenize_str(reader.normalizer.normalize_str(valid_text(caption)))
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


def valid_text(text: str) -> str:
    """The text with a question mark for each lone surrogate, which a command line can contain."""
    return text.encode("utf-8", "replace").decode()
