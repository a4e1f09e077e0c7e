"""Captions from file names: "a_red-boat (2)" says what a picture shows, "IMG_1234" does not."""

from __future__ import annotations

import re

# Names that cameras, phones and programs generate consist of a prefix, numbers, and suffixes.
PREFIX = re.compile(
    "img|imgp|imag|imgs|dsc|dsc[nfix]|dcim|mg|cimg|pict|pic|picture|photo|foto|bild|images?|scan|pxl|mvimg|vid|video"
    "|go?pr|g[phx]|dji|hpim|kif|stp|snap|sdc|mov|fb|received|signal|screenshot|screencap|screen|whatsapp|telegram"
    "|snapchat|capture|untitled|unnamed|download|file|frame|comfyui|bildschirmfoto|fullsizerender|output|tmp|temp"
    "|tempimage.*|inshot|picsart|vlcsnap|mpv|videocapture|kakaotalk|mmexport|wechat|weixin|coco|ilsvrc"
    # "screenshot", "picture" and "photograph" in other languages
    "|captura|schermata|schermafbeelding|skærmbillede|skärmavbild|skjermbilde|näyttökuva|zrzut|ekran|снимок|скриншот"
    "|знімок|snímek|képernyőkép|スクリーンショット|屏幕截图|屏幕快照|截屏|截图|截圖|螢幕截圖|螢幕擷取畫面|스크린샷|لقطة"
    "|微信图片|微信截图|qq图片|qq截图|图片|圖片|照片|相片|写真|画像|사진|이미지|фото|изображение|immagine|imagem|imagen"
    "|afbeelding|zdjęcie|resim"
)
PREFIX_LETTERS = "prlscd"  # before four digits or more: P1010001, R0001234
SUFFIX = re.compile(
    "shot|image|photo|img|[b-z]|copy|edited|edit|hdr|pano|burst|cover|portrait|night|mp|wa|at|from|on|um|am|pm|écran|à"
    "|top|crop|cropped|resized|scaled|orig|original|min|enhanced|nr|heic|jpe?g|png|pro|album|cloud|size|gif|action"
    "|train|val|test|line|win|rdt|kopie|copie|copia|копия"
    "|de|pantalla|tela|às|las|alle|om|kl|ekranu|görüntüsü|resmi|экрана|екрана|в|obrazovky|شاشة|오전|오후|午前|午後"
)
UNNUMBERED = (  # generated names that need no number
    "untitled", "unnamed", "fullsizerender", "img", "dsc", "new project", "new image", "unbenannt", "ohne titel",
    "sin título", "sans titre", "senza titolo", "sem título", "без имени", "无标题", "無題", "名称未設定", "제목 없음",
)  # fmt: skip
SCREENSHOT = re.compile(r"screenshot_\d{8}-\d{6}.*", re.IGNORECASE | re.DOTALL)  # then the app on the screen
SIZE_OR_TIME = re.compile(r"\d+(x\d+|h\d+m\d+s\d*)")
DCF = re.compile(r"SAM_\d{4}|[A-Z0-9_]{3}[A-Z0-9]\d{4}")  # the file names of cameras: eight characters
A1111_NUMBER = re.compile(r"\d{5}-\d+-")  # how A1111's web UI begins names
COPY_SUFFIX = re.compile(  # a second file extension, and what Windows appends to copies
    r"(\.(png|jpe?g|webp|gif|bmp|tiff?|heic))*( - (copy|kopie|copie|copia|kopia|kopi|копия|副本|コピー)( \(\d+\))?)*$",
    re.IGNORECASE,
)
TIMESTAMP = re.compile(r"( \d{6,}| \d{4}( \d\d){2,5})*( \d+)?$")  # dates, times and a number
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def caption_from_filename(stem: str) -> str:
    """The caption in a file name, "" where a camera or a program generated it: "a_red-boat (2)" is "a red boat"."""
    stem = COPY_SUFFIX.sub("", stem.replace("%20", " "))
    if is_generated(stem):
        return ""
    stem = UUID.sub("", A1111_NUMBER.sub("", stem))
    words = re.sub(r"[\s_-]+", " ", re.sub(r"\(\d+\)", "", stem)).strip()
    return re.sub(r"(?<=[^\W\d_]{2})(0\d+|\d{4,})$", "", TIMESTAMP.sub("", f" {words}").strip())


def is_generated(stem: str) -> bool:
    """Whether a camera or a program generated a name: IMG_1234, PXL_20230101_123456789, a number, a hash."""
    if DCF.fullmatch(stem) or SCREENSHOT.fullmatch(stem) or re.sub(r"[\W\d_]+$", "", stem.lower()) in UNNUMBERED:
        return True
    parts = [part.lower() for part in re.split(r"[\W_]+", UUID.sub("0000000", stem)) if part]
    kinds = {_kind(part) for part in parts}
    return kinds <= {"number", "long", "prefix", "suffix"} and (
        kinds <= {"number", "long"} or "long" in kinds or ("prefix" in kinds and any(map(str.isdigit, stem)))
    )


def _kind(part: str) -> str:
    """The kind of a part of a generated name; "word" for any other part."""
    word = part.strip("0123456789")
    if not word or SIZE_OR_TIME.fullmatch(part) or re.fullmatch(r"(?=.*\d[a-f])[0-9a-f]{8,}", part):
        return "long" if len(part) >= 6 else "number"  # a date, or a hash
    if PREFIX.fullmatch(word) or re.fullmatch(r"[a-z]\d{6,}", part) or (word in PREFIX_LETTERS and len(part) >= 5):
        return "prefix"
    return "suffix" if SUFFIX.fullmatch(word) else "word"
