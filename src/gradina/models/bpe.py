"""CLIP's byte-pair encoding by the `tokenizers` library: set up, learned, and kept in the files of transformers."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from gradina.errors import WeightsError
from gradina.files import read_json

BOS, EOS, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"
ASSET = Path(__file__).parents[1] / "assets" / "clip_merges.txt.gz"
PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
NORMALIZER = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])  # of prompts, but for spaces
DEFAULTS = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
AGAIN = "fetch or save the tokenizer folder again"
HIDDEN = "\ue000"  # before the names of a placeholder's further tokens, so that no prompt has them by chance

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


def read_optional(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none. Raises WeightsError."""
    return dict(read_json(path)) if path.exists() else {}


def read_merges(path: Path, entries: Any) -> list[Merge]:
    """Pairs from lines ("a b</w>") or, in newer tokenizer.json files, from lists."""
    if not isinstance(entries, list):
        raise WeightsError(f"{path}: expected a list of merges, got {type(entries).__name__}; {AGAIN}")
    merges = []
    for number, entry in enumerate(entries, 1):
        pair = entry.split() if isinstance(entry, str) else entry
        if not isinstance(pair, list) or len(pair) not in (0, 2):
            raise WeightsError(f"{path}: merge {number} is {entry!r}, expected two tokens; {AGAIN}")
        if pair and pair[0] != "#version:":
            merges.append((pair[0], pair[1]))
    return merges


def _read_merges_file(path: Path) -> list[Merge]:
    try:
        return read_merges(path, path.read_text(encoding="utf-8").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}); {AGAIN}") from error


def _token(path: Path, value: Any) -> AddedToken:
    """A special or added token as files have it: its text, or an object with the text and how it is matched."""
    try:
        fields: dict[str, Any] = {"special": True} | ({"content": value} if isinstance(value, str) else value)
        return AddedToken(**{key: fields[key] for key in fields if key not in ("__type", "id")})
    except TypeError as error:
        raise WeightsError(f"{path}: {reprlib.repr(value)} is no token; {AGAIN}") from error


def read_model(folder: Path) -> tuple[dict[str, int], list[Merge], dict[int, AddedToken]]:
    """Vocabulary, merges and added tokens by id; tokenizer.json overrides the two older files, as in transformers."""
    path, added = folder / "tokenizer.json", {}
    if path.exists():
        content = read_json(path)
        model = content.get("model")
        if not isinstance(model, dict) or model.get("end_of_word_suffix") != SUFFIX:
            raise WeightsError(f"{path}: has no byte-pair model of CLIP's form; use the tokenizer of a CLIP model")
        vocabulary, merges = model.get("vocab"), read_merges(path, model.get("merges"))
        added = {entry["id"]: _token(path, entry) for entry in content.get("added_tokens") or []}
    else:
        path = folder / "vocab.json"
        vocabulary, merges = read_json(path), _read_merges_file(folder / "merges.txt")
    if not isinstance(vocabulary, dict) or any(type(i) is not int or i < 0 for i in vocabulary.values()):
        raise WeightsError(f"{path}: expected a vocabulary of tokens and their ids; {AGAIN}")
    if len(set(vocabulary.values())) < len(vocabulary):
        raise WeightsError(f"{path}: two tokens have the same id; {AGAIN}")
    return vocabulary, merges, added


def read_special(
    folder: Path, config: dict[str, Any], added: dict[int, AddedToken]
) -> tuple[dict[str, AddedToken], dict[int, AddedToken]]:
    """Special tokens by their role, and all added tokens by id; where two files have one, as in transformers."""
    path, older = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    modern = "added_tokens_decoder" in config  # written since transformers 4.34, and then complete
    roles = {key: _token(path, content) for key, content in DEFAULTS.items()}
    for source, content in ((path, config), (older, {} if modern else read_optional(older))):
        roles |= {key: _token(source, content[key]) for key in ROLES if content.get(key) is not None}
    if modern:
        added = {int(i): _token(path, entry) for i, entry in config["added_tokens_decoder"].items()}
    else:
        entries = read_optional(folder / "added_tokens.json").items()
        added = {i: AddedToken(token, normalized=True) for token, i in entries} | added
    known = {token.content: token for token in added.values()}
    return {key: known.get(roles[key].content, roles[key]) for key in ROLES if key in roles}, added


def read_tokenizer(folder: Path) -> tuple[tokenizers.Tokenizer, int, int, int, int]:
    """The engine in a folder, its context length, and the ids of start, end and padding. Raises WeightsError."""
    config = read_optional(folder / "tokenizer_config.json")
    length = config.get("model_max_length", 77)
    if not isinstance(length, int | float) or length < 3:
        raise WeightsError(f"{folder}: model_max_length is {reprlib.repr(length)}, expected 3 or more; {AGAIN}")
    try:
        vocabulary, merges, added = read_model(folder)
        roles, added = read_special(folder, config, added)
        unknown = roles["unk_token"].content if roles["unk_token"].content in vocabulary else None
        engine = build_engine(vocabulary, merges, unknown, [added[i] for i in sorted(added)] + list(roles.values()))
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
    return engine, int(length) if length < 1e6 else 77, bos, eos, pad  # transformers writes 1e30 for "unknown"


def write_tokenizer(
    engine: tokenizers.Tokenizer,
    length: int,
    ids: Mapping[str, int],
    multi_token: Mapping[int, list[int]],
    folder: Path,
) -> None:
    """Writes the files of `Tokenizer.save`; `ids` are those of bos_token, eos_token and pad_token."""
    folder.mkdir(parents=True, exist_ok=True)
    model = json.loads(engine.to_str())["model"]
    vocabulary = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    named = {key: engine.id_to_token(i) for key, i in ids.items()} | {"unk_token": model["unk_token"] or EOS}
    config = named | {
        "add_prefix_space": False,
        "added_tokens_decoder": _added_tokens(engine, multi_token),
        "clean_up_tokenization_spaces": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": length,
        "tokenizer_class": "CLIPTokenizer",
    }
    for name, text in {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]),
        "tokenizer_config.json": json.dumps(config, indent=2, sort_keys=True),
        "special_tokens_map.json": json.dumps(named, indent=2, sort_keys=True),
    }.items():
        (folder / name).write_text(text + "\n", encoding="utf-8", newline="\n")


def _added_tokens(engine: tokenizers.Tokenizer, multi_token: Mapping[int, list[int]]) -> dict[str, dict[str, Any]]:
    """The added tokens as transformers writes them."""
    tokens = dict(sorted(engine.get_added_tokens_decoder().items()))
    states = {i: {**t.__getstate__(), "content": t.content.removeprefix(HIDDEN)} for i, t in tokens.items()}
    names = {state["content"]: i for i, state in states.items()}
    several = {first: more for first, more in multi_token.items() if more}
    if len(names) < len(states) or find_multi_token(names) != several:
        words = ", ".join(token.content for token in tokens.values() if not token.special)
        raise WeightsError(f"the words {words}: one has the name of another's tokens; save them apart")
    return {str(i): state for i, state in states.items()}


def find_multi_token(added: Mapping[str, int]) -> dict[int, list[int]]:
    """The further tokens of placeholders that have several, by the first: NAME_1, NAME_2, ..., as in diffusers."""
    found = {}
    for name, first in added.items():
        names = takewhile(added.__contains__, (f"{name}_{i}" for i in count(1)))
        if more := [added[other] for other in names]:
            found[first] = more
    return found
