"""The grammar of A1111's text, parsed more leniently than by the web UI: prompts, then `Key: value, ...`.

Settings may also follow the prompt on the same line, and quoted values may span lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

NEGATIVE = "Negative prompt:"
MAX_TRIES = 8  # of positions inside a line at which settings may begin

_STEPS_LINE = re.compile(r"^[ \t]*Steps:[ \t]*\d+[ \t]*(?=[,\n]|\Z)", re.MULTILINE)
_INSIDE = re.compile(
    r"(?<!\w)(?:(?:Steps|Seed):[ \t]*\d+[ \t]*(?=[,\n]|\Z)|Size:[ \t]*\d+x\d|Sampler:|CFG scale:|Model(?: hash)?:)"
)
_NEGATIVE_LINE = re.compile(rf"^[ \t]*{NEGATIVE} ?", re.MULTILINE | re.IGNORECASE)
_NEGATIVE_INSIDE = re.compile(rf"(?<!\w){NEGATIVE} ?", re.IGNORECASE)
_ESCAPED = re.compile(r"(?:\\r)?\\n|<br ?/?>")  # line breaks that were escaped for JSON or HTML
_KEY = re.compile(r'[ \t]*(\w[^:,"\n]{0,80}?)[ \t]*:[ \t]*')
_END = r"(?=[ \t]*(?:[,\n]|\Z))"
_QUOTED = re.compile(rf'"(?:[^"\\]|\\.)*"{_END}', re.DOTALL)
_COMMA = re.compile(r"[ \t]*(?:,|(?=\n)|\Z)")
_PLAIN = re.compile(rf"-?\d+,\d+{_END}|[^,\n]*")  # a decimal comma does not end a value


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a text, as strings."""

    prompt: str
    negative_prompt: str
    pairs: Mapping[str, str]
    rest: str  # lines after the settings, written by some extensions


def _value(text: str, start: int) -> tuple[str, int]:
    """The value at a position, and its end: a JSON string, a JSON list or object, or all up to the next comma."""
    if quoted := _QUOTED.match(text, start):
        try:
            return str(json.loads(quoted[0], strict=False)), quoted.end()
        except ValueError:
            return quoted[0], quoted.end()
    if text[start : start + 1] in ("[", "{"):
        try:
            _, end = json.JSONDecoder(strict=False).raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start
        if end > start and _COMMA.match(text, end):
            return text[start:end], end
    match = _PLAIN.match(text, start)
    assert match  # the pattern also matches an empty text
    return match[0].strip(), match.end()


def _settings(text: str, at: int, known: Mapping[str, str]) -> tuple[dict[str, str], int]:
    """The settings from a position to the end of the line, or of a quoted value, and that end.

    Words without a key become keys with an empty value; known keys are matched in any case.
    """
    pairs: dict[str, str] = {}
    while at < len(text) and text[at] != "\n":
        if key := _KEY.match(text, at):
            value, at = _value(text, key.end())
            pairs[known.get(key[1].lower(), key[1])] = value
        else:
            word = _PLAIN.match(text, at)
            assert word
            at = word.end()
            if word[0].strip():
                pairs[word[0].strip()] = ""
        comma = _COMMA.match(text, at)
        at = comma.end() if comma else at
    return pairs, at


def _without_separator(text: str) -> str:
    """Without the comma or full stop between a prompt and what follows on its line."""
    text = text.rstrip()
    return text[:-1].rstrip() if text.endswith((".", ",", ";", "|")) else text


def _find_settings(text: str, known: Mapping[str, str]) -> tuple[int, int, dict[str, str]]:
    """Start and end of the settings, and the settings; both are the end of the text if there are none."""
    names = set(known.values())
    start, end, pairs = 0, 0, dict[str, str]()
    while line := _STEPS_LINE.search(text, end):  # not one inside a quoted value: the search continues after it
        start = line.start()
        pairs, end = _settings(text, start, known)
    while pairs and end < len(text):  # the next lines, as long as they have only known keys
        more, at = _settings(text, end + 1, known)
        if not more or not more.keys() <= names or not all(more.values()):
            break
        pairs, end = more | pairs, at
    if pairs:
        return start, end, pairs
    for inside in islice(_INSIDE.finditer(text), MAX_TRIES):
        pairs, end = _settings(text, inside.start(), known)
        no_prompt = inside[0].startswith("Steps") or all(pairs.values())  # no words without a key
        if len(pairs.keys() & names) >= 3 and "Steps" in pairs and no_prompt:
            return inside.start(), end, pairs
    start = text.rfind("\n") + 1
    pairs, end = _settings(text, start, known)
    with_value = [key for key, value in pairs.items() if value]
    least = 1 if "Steps" in pairs else 2  # known keys, since a prompt may contain colons
    begins = bool(with_value) and next(iter(pairs)) == with_value[0] and not _NEGATIVE_LINE.match(text, start)
    if begins and len(with_value) >= 3 and len(pairs.keys() & names) >= least:
        return start, end, pairs
    return len(text), len(text), {}


def parse(text: str, known: Mapping[str, str]) -> Parts:
    """The parts of a text; `known` maps keys in lower case to keys.

    The settings begin with a line `Steps: 20`, or inside a line before that and two more known keys, or are the last
    line if it has three pairs, two of known keys. The negative prompt begins a line, or inside a line stands before
    the settings.
    """
    text = re.sub(r"\r\n?", "\n", text).rstrip()
    if "\n" not in text and _STEPS_LINE.search(unescaped := _ESCAPED.sub("\n", text)):
        text = unescaped
    start, end, pairs = _find_settings(text, known)
    inside = start > 0 and text[start - 1 : start] != "\n" and bool(pairs)
    head = _without_separator(text[:start]) if inside else text[:start].removesuffix("\n") if pairs else text
    split = _NEGATIVE_LINE.search(head)
    if split or not inside:
        prompt = head[: split.start()].removesuffix("\n") if split else head
    elif split := _NEGATIVE_INSIDE.search(head):
        prompt = _without_separator(head[: split.start()])
    else:
        prompt = head
    negative = _NEGATIVE_LINE.sub("", head[split.end() :]) if split else ""
    return Parts(prompt, negative, pairs, text[end:].strip())
