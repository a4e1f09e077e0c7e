"""A picture of one's own with what is said of it: the form in which captions stand in files, and what is no caption."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gradina.errors import RecipeError
from gradina.texts import parsed

log = logging.getLogger(__name__)

CAPTION_KEYS = ("text", "caption", "prompt")  # what captions are called in tables of metadata and in JSON
SPEAKING = ("tags", "tag_string", "description", "title", "keywords", "labels")  # what others say in JSON
MISSING = ("nan", "null", "none", "n/a", "#n/a", "na", "<na>")  # a value that is not there, as text
UNSEEN = "\u200b\u2060\ufeff\x1a"
GIVEN_WORDS = "the words given"  # the place of a caption that is not in the folder
NAMED = 3  # files in an error
SHOWN = 60  # letters of a caption in a message
LONGEST = 256  # letters of a name there

# Of names that cameras, telephones and programs give: words, those that come behind them, and single letters.
GIVEN = re.compile(
    "img|imgp|imag|imgs|dsc|dsc[nfix]|dcim|mg|cimg|pict|pic|picture|photo|foto|bild|images?|scan|pxl|mvimg|vid|video"
    "|go?pr|g[phx]|dji|hpim|kif|stp|snap|sdc|mov|fb|received|signal|screenshot|screencap|screen|whatsapp|telegram"
    "|snapchat|capture|untitled|unnamed|download|file|frame|comfyui|bildschirmfoto|fullsizerender|output|tmp|temp"
    "|tempimage.*|inshot|picsart|vlcsnap|mpv|videocapture|kakaotalk|mmexport|wechat|weixin|coco|ilsvrc"
    # a screenshot, a picture and a photograph in other languages
    "|captura|schermata|schermafbeelding|skærmbillede|skärmavbild|skjermbilde|näyttökuva|zrzut|ekran|снимок|скриншот"
    "|знімок|snímek|képernyőkép|スクリーンショット|屏幕截图|屏幕快照|截屏|截图|截圖|螢幕截圖|螢幕擷取畫面|스크린샷|لقطة"
    "|微信图片|微信截图|qq图片|qq截图|图片|圖片|照片|相片|写真|画像|사진|이미지|фото|изображение|immagine|imagem|imagen"
    "|afbeelding|zdjęcie|resim"
)
LETTERS = "prlscd"  # before four digits or more: P1010001, R0001234
BEHIND = re.compile(
    "shot|image|photo|img|[b-z]|copy|edited|edit|hdr|pano|burst|cover|portrait|night|mp|wa|at|from|on|um|am|pm|écran|à"
    "|top|crop|cropped|resized|scaled|orig|original|min|enhanced|nr|heic|jpe?g|png|pro|album|cloud|size|gif|action"
    "|train|val|test|line|win|rdt|kopie|copie|copia|копия"
    "|de|pantalla|tela|às|las|alle|om|kl|ekranu|görüntüsü|resmi|экрана|екрана|в|obrazovky|شاشة|오전|오후|午前|午後"
)
ALONE = (  # they say nothing without a number, too
    "untitled", "unnamed", "fullsizerender", "img", "dsc", "new project", "new image", "unbenannt", "ohne titel",
    "sin título", "sans titre", "senza titolo", "sem título", "без имени", "无标题", "無題", "名称未設定", "제목 없음",
)  # fmt: skip
APP = re.compile(r"screenshot_\d{8}-\d{6}.*", re.IGNORECASE | re.DOTALL)  # which was on the screen comes behind
TIMES = re.compile(r"\d+(x\d+|h\d+m\d+s\d*)")  # parts that are sizes, or times
CARD = re.compile(r"SAM_\d{4}|[A-Z0-9_]{3}[A-Z0-9]\d{4}")  # as cards of cameras have names: eight characters
NUMBERED = re.compile(r"\d{5}-\d+-")  # as A1111's web UI begins names
COPIED = re.compile(  # a second ending, and what Windows puts behind copies
    r"(\.(png|jpe?g|webp|gif|bmp|tiff?|heic))*( - (copy|kopie|copie|copia|kopia|kopi|копия|副本|コピー)( \(\d+\))?)*$",
    re.IGNORECASE,
)
STAMP = re.compile(r"( \d{6,}| \d{4}( \d\d){2,5})*( \d+)?$")  # dates, times and a number
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class Tell(Protocol):
    """Notes what is odd about a file; see `telling`."""

    def __call__(self, name: str, what: str) -> None: ...


@contextmanager
def telling() -> Iterator[Tell]:
    """A function that collects what is odd; each kind of it is one note at the end, with the first and a count."""
    odd: dict[str, list[str]] = {}
    yield lambda name, what: odd.setdefault(what, []).append(name)
    for what, names in odd.items():
        more = f" and {len(names) - 1} more" if names[1:] else ""
        log.warning("%s%s: %s", names[0], more, what)


@dataclass(frozen=True)
class Captioned:
    """A picture and its caption: in a file, or in one of a shard."""

    file: Path
    caption: str
    member: str = ""
    place: str = ""  # where its caption was found, in words
    repeats: int = 1  # times as often it is drawn
    span: tuple[Path, int, int] | None = None  # of a member: in which file its bytes lie, from where, and how many

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"{self.file}/{self.member}" if self.member else str(self.file)

    def data(self) -> bytes:
        """The bytes of the picture."""
        return self.file.read_bytes() if self.span is None else spanned(*self.span)


def spanned(file: Path, start: int, count: int) -> bytes:
    """Some of the bytes of a file."""
    with file.open("rb") as opened:
        opened.seek(start)
        return opened.read(count)


def trimmed(text: str) -> str:
    """A text without what cannot be seen at its ends: spaces, also of no width, joined byte-order marks, DOS's end."""
    before = None
    while text != before:
        before, text = text, text.strip().strip(UNSEEN)
    return text


def caption_in(row: Mapping[str, object], where: str, tell: Tell) -> str:
    """The caption that a row of a table or a JSON object holds, "" for none; RecipeError for what is no text."""
    there = [key for key in CAPTION_KEYS if row.get(key) not in (None, "", [])]
    key = there[0] if there else ""
    said = row.get(key, "")
    if any(row[other] != said for other in there[1:]):
        tell(where, f"has {' and '.join(there)}, of which {key} is read")
    if isinstance(said, list):
        tell(where, f"{key} is a list, of which the first is read")
        said = next((each for each in said if each not in (None, "")), "")
    if not isinstance(said, str):
        raise RecipeError(f"{where}: {key} is {shown(repr(said))}, expected a text")
    try:
        said.encode()
    except UnicodeEncodeError as error:
        raise RecipeError(f"{where}: {key} is no text in Unicode ({error.reason})") from error
    said = trimmed(said)
    if said.lower() in MISSING:
        tell(where, f"{key} is {said}, as programs write what is missing, and no caption")
        return ""
    return said


def caption_of_json(text: str, where: str, tell: Tell) -> str:
    """The caption in the JSON beside a picture, as img2dataset writes it; "" where it speaks of other things."""
    try:
        row = parsed(text) if text.strip() else None
    except ValueError as error:
        raise RecipeError(f"{where}: is no JSON ({error})") from error
    if not isinstance(row, dict):
        return ""
    caption = caption_in(row, where, tell)
    others = [key for key in SPEAKING if row.get(key)]
    if others and not caption:
        tell(where, f"has no caption, expected {CAPTION_KEYS[0]} or {CAPTION_KEYS[1]} (it has {some(others)})")
    return caption


def spoken(stem: str) -> str:
    """The name of a file as a caption: "a_red-boat (2)" is "a red boat"; what a camera or a number says is nothing."""
    stem = COPIED.sub("", stem.replace("%20", " "))
    if given(stem):
        return ""
    stem = UUID.sub("", NUMBERED.sub("", stem))
    words = re.sub(r"[\s_-]+", " ", re.sub(r"\(\d+\)", "", stem)).strip()
    return re.sub(r"(?<=[^\W\d_]{2})(0\d+|\d{4,})$", "", STAMP.sub("", f" {words}").strip())


def given(stem: str) -> bool:
    """Whether a name is one that a camera or a program gives: IMG_1234, PXL_20230101_123456789, a number, a hash."""
    if CARD.fullmatch(stem) or APP.fullmatch(stem) or re.sub(r"[\W\d_]+$", "", stem.lower()) in ALONE:
        return True
    parts = [part.lower() for part in re.split(r"[\W_]+", UUID.sub("0000000", stem)) if part]
    kinds = {_kind(part) for part in parts}
    return kinds <= {"number", "long", "given", "behind"} and (
        kinds <= {"number", "long"} or "long" in kinds or ("given" in kinds and any(map(str.isdigit, stem)))
    )


def _kind(part: str) -> str:
    """What a part of such a name is; "word" for one of anybody's."""
    word = part.strip("0123456789")
    if not word or TIMES.fullmatch(part) or re.fullmatch(r"(?=.*\d[a-f])[0-9a-f]{8,}", part):
        return "long" if len(part) >= 6 else "number"  # of a date, or a hash
    if GIVEN.fullmatch(word) or re.fullmatch(r"[a-z]\d{6,}", part) or (word in LETTERS and len(part) >= 5):
        return "given"
    return "behind" if BEHIND.fullmatch(word) else "word"


def some(names: Sequence[str]) -> str:
    """The first of some names, cut if they are longer than any file's."""
    return ", ".join(shown(name, LONGEST) for name in names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def shown(text: str, room: int = SHOWN) -> str:
    """A text cut to what a message has room for."""
    return text if len(text) <= room else text[: room - 3] + "..."
