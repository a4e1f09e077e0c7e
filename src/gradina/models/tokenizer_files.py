"""The files of a tokenizer's folder, as diffusers and transformers write them; errors name the file."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from gradina.errors import WeightsError
from gradina.files import read_json

BOS, EOS, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"
DEFAULTS = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
AGAIN = "fetch or save the tokenizer folder again"

Merge = tuple[str, str]


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
