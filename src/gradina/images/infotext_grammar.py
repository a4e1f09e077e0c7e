"""The grammar of A1111's text, read as the web UI reads it and more forgivingly: prompts, then `Key: value, ...`.

Its settings are the last line; here they may also follow the prompt in one line, and quoted values may go over lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

NEGATIVE = "Negative prompt:"
TRIES = 8  # places inside a line where settings may begin

_STEPS_LINE = re.compile(r"^[ \t]*Steps:[ \t]*\d+[ \t]*(?=[,\n]|\Z)", re.MULTILINE)
_INSIDE = re.compile(
    r"(?<!\w)(?:(?:Steps|Seed):[ \t]*\d+[ \t]*(?=[,\n]|\Z)|Size:[ \t]*\d+x\d|Sampler:|CFG scale:|Model(?: hash)?:)"
)
_NEGATIVE_LINE = re.compile(rf"^[ \t]*{NEGATIVE} ?", re.MULTILINE | re.IGNORECASE)
_NEGATIVE_INSIDE = re.compile(rf"(?<!\w){NEGATIVE} ?", re.IGNORECASE)
_ESCAPED = re.compile(
    r"(?:\\r)?\\n|<br ?/?>"
)  # line breaks of a text that went through JSON, or a page, once too often
_KEY = re.compile(r'[ \t]*(\w[^:,"\n]{0,80}?)[ \t]*:[ \t]*')
_END = r"(?=[ \t]*(?:[,\n]|\Z))"
_QUOTED = re.compile(rf'"(?:[^"\\]|\\.)*"{_END}', re.DOTALL)
_COMMA = re.compile(r"[ \t]*(?:,|(?=\n)|\Z)")
_PLAIN = re.compile(rf"-?\d+,\d+{_END}|[^,\n]*")  # a decimal comma is no end


@dataclass(frozen=True, slots=True)
class Parts:
    """The text in its parts, nothing understood yet."""

    prompt: str
    negative_prompt: str
    pairs: Mapping[str, str]
    rest: str  # lines after the settings, as some extensions write


def _value(text: str, at: int) -> tuple[str, int]:
    """The value that begins there, and where it ends: quoted as JSON, JSON itself, or whatever there is to a comma."""
    if quoted := _QUOTED.match(text, at):
        try:
            return str(json.loads(quoted[0], strict=False)), quoted.end()
        except ValueError:
            return quoted[0], quoted.end()
    if text[at : at + 1] in ("[", "{"):
        try:
            _, end = json.JSONDecoder(strict=False).raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at
        if end > at and _COMMA.match(text, end):
            return text[at:end], end
    found = _PLAIN.match(text, at)
    assert found  # it matches nothing at all, too
    return found[0].strip(), found.end()


def _settings(text: str, at: int, known: Mapping[str, str]) -> tuple[dict[str, str], int]:
    """Keys and values from there to the end of the line, or of what is quoted, and where that is.

    Words without a key come with an empty value; a known key is written as it is known, however it stands there.
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
    """Without the comma or full stop that stands between a prompt and what follows in its line."""
    text = text.rstrip()
    return text[:-1].rstrip() if text.endswith((".", ",", ";", "|")) else text


def _places(text: str, known: Mapping[str, str]) -> tuple[int, int, dict[str, str]]:
    """Where settings begin and end, and what they are; both are the end of the text if there are none."""
    names = set(known.values())
    found: tuple[int, int, dict[str, str]] | None = None
    at = 0
    while line := _STEPS_LINE.search(text, at):  # one inside a quoted value is none: the search goes on behind it
        pairs, at = _settings(text, line.start(), known)
        found = line.start(), at, pairs
    if found:
        return _with_further_lines(text, *found, known)
    for inside, _ in zip(_INSIDE.finditer(text), range(TRIES), strict=False):
        pairs, end = _settings(text, inside.start(), known)
        clear = inside[0].startswith("Steps") or all(pairs.values())  # no words of a prompt between them
        if len(pairs.keys() & names) >= 3 and "Steps" in pairs and clear:
            return inside.start(), end, pairs
    start = text.rfind("\n") + 1
    pairs, end = _settings(text, start, known)
    said = [key for key, value in pairs.items() if value]
    least = 1 if "Steps" in pairs else 2  # of the keys are known: a prompt may hold colons
    begins = bool(said) and next(iter(pairs)) == said[0] and not _NEGATIVE_LINE.match(text, start)
    if begins and len(said) >= 3 and len(pairs.keys() & names) >= least:
        return start, end, pairs
    return len(text), len(text), {}


def _with_further_lines(
    text: str, start: int, end: int, pairs: dict[str, str], known: Mapping[str, str]
) -> tuple[int, int, dict[str, str]]:
    """Settings that begin a line, with those of the next lines that hold nothing but known keys."""
    names = set(known.values())
    while end < len(text):
        more, at = _settings(text, end + 1, known)
        if not more or not more.keys() <= names or not all(more.values()):
            break
        pairs, end = more | pairs, at
    return start, end, pairs


def parse(text: str, known: Mapping[str, str]) -> Parts:
    """The parts of a text; `known` are the keys by their small letters.

    The settings begin with a line `Steps: 20`, or inside a line where that and two further known keys follow, or are
    the last line if it is three pairs of which two are known. The negative prompt begins a line, or in the second form
    stands anywhere before them.
    """
    text = re.sub(r"\r\n?", "\n", text).rstrip()
    if "\n" not in text and _STEPS_LINE.search(unescaped := _ESCAPED.sub("\n", text)):
        text = unescaped
    start, end, pairs = _places(text, known)
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
