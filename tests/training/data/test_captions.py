"""Captions that are there are seen, wherever others put them; what is not read is told, and what is odd is refused."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from gradina.errors import RecipeError
from gradina.training.data.captioned import given, spoken
from gradina.training.data.captions import captions_told, read_folder, without_captions

Files = dict[str, bytes | str]


def make(folder: Path, files: Files) -> Path:
    """A folder with files of these bytes; pictures are not opened here, and may be anything."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def captions(folder: Path, caption: str | None = None) -> dict[str, str]:
    return {one.file.relative_to(folder).as_posix(): one.caption for one in read_folder(folder, caption)}


NFD, NFC = unicodedata.normalize("NFD", "été"), "été"


@pytest.mark.parametrize(
    "name",
    ["a.txt", "a.TXT", "a.Txt", "a.caption", "a.CAPTION", "a.png.txt", "a.PNG.TXT", "A.txt", "a.json", "a.png.json"],
)
def test_every_name_of_a_caption_is_seen(tmp_path: Path, name: str) -> None:
    said = '{"caption": "a seven", "url": "x"}' if name.endswith("json") else " a seven\r\n"
    assert captions(make(tmp_path, {"a.png": "", name: said})) == {"a.png": "a seven"}


@pytest.mark.parametrize(("picture", "text"), [(NFD, NFC), (NFC, NFD), (f"x/{NFD}", f"x/{NFC}")])
def test_every_form_of_unicode_is_seen(tmp_path: Path, picture: str, text: str) -> None:
    assert list(captions(make(tmp_path, {f"{picture}.png": "", f"{text}.TXT": "a seven"})).values()) == ["a seven"]


def test_the_caption_of_another_picture_is_not_taken_for_its_capitals(tmp_path: Path) -> None:
    make(tmp_path, {"A.png": "", "a.png": "", "a.txt": "small"})
    with pytest.raises(RecipeError, match=r"captions are missing for 1 of 2 pictures \(A.png\)"):
        read_folder(tmp_path)
    assert captions(make(tmp_path, {"A.txt": "large"})) == {"A.png": "large", "a.png": "small"}


@pytest.mark.parametrize(
    ("files", "caption", "note"),
    [
        ({"a.txt": "", "a.json": '{"caption": "of JSON"}'}, "of JSON", ""),
        ({"a.txt": "of text", "a.json": '{"caption": "of JSON"}'}, "of text", ""),
        ({"a.txt": " \n", "a.caption": "of caption"}, "of caption", ""),
        ({"a.txt": "one", "a.caption": "two"}, "one", "a.caption: is not read, since there is another"),
        ({"a.txt": "one", "a.png.txt": "two"}, "one", "a.png.txt: is not read"),
        ({"a.json": '{"caption": ["one", "two"]}'}, "one", "a.json: caption is a list, of which the first is read"),
        ({"a.json": "\ufeff" + '{"text": "one"}'}, "one", ""),
        ({"a.json": '{"shapes": []}'}, "a", ""),  # of a program that marks what is where: the name says it
        ({"a.json": '["one"]'}, "a", ""),
        ({"a.json": '{"tags": ["one"]}'}, "a", "a.json: has no caption, expected text or caption (it has tags)"),
        ({"captions.csv": "x", "a.tags": "y"}, "a", "a.tags and 1 more: is not read; captions stand in metadata.csv"),
        ({"a.txt": "a [trigger]"}, "a [trigger]", "a.png: [trigger] in its caption stays as it is; write the words"),
        ({"a.txt": "one\n\ntwo"}, "one\n\ntwo", "a.txt: has several lines, which are read as one caption"),
        ({"a.txt": "\u200b\ufeff a seven\u00a0\x1a\u200b"}, "a seven", ""),
        ({"a.txt": "\u200b", "a.caption": "two"}, "two", ""),
        ({"README.txt": "about"}, "a", "README.txt: is called as no picture is, and is not read"),
        ({"metadata.csv": "file_name,text\na.png,of table", "a.txt": "of text"}, "of table",
         "a.txt: is not read, since metadata.csv says the caption"),
        ({"metadata.csv": "file_name,text\na.png,\n", "a.txt": "of text"}, "of text", ""),
    ],
)  # fmt: skip
def test_the_first_caption_that_says_something(
    tmp_path: Path, files: Files, caption: str, note: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert captions(make(tmp_path, {"a.png": "", **files})) == {"a.png": caption}
    assert note in caplog.text
    assert bool(note) == bool(caplog.messages)


def test_a_mixture_of_places_is_read_and_told(tmp_path: Path) -> None:
    files: Files = {
        "a.txt": "one",
        "b.caption": "two",
        "c.json": '{"caption": "three"}',
        "x/metadata.csv": "file_name,text\nd.jpg,four",
    }
    make(tmp_path, {"a.png": "", "b.png": "", "c.png": "", "x/d.jpg": "", **files})
    assert captions(tmp_path) == {"a.png": "one", "b.png": "two", "c.png": "three", "x/d.jpg": "four"}
    assert captions_told(read_folder(tmp_path)) == (
        'captions: from .txt files (1 of 4); a.png: "one"; from .caption files (1 of 4); b.png: "two"; '
        'from .json files (1 of 4); c.png: "three"; from x/metadata.csv (1 of 4); d.jpg: "four"'
    )
    (tmp_path / "b.caption").unlink()
    with pytest.raises(RecipeError, match=r"captions are missing for 1 of 4 pictures \(b.png\); put each into a .txt"):
        read_folder(tmp_path)


def test_an_empty_text_leaves_a_caption_missing(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"captions are missing for 2 of 2 pictures \(a boat.png, b.png\); put each"):
        read_folder(make(tmp_path, {"a boat.png": "", "a boat.txt": "\ufeff\r\n", "b.png": ""}))


def test_long_captions_are_told_in_part(tmp_path: Path) -> None:
    make(tmp_path, {"a.png": "", "a.txt": "x" * 61})
    assert captions_told(read_folder(tmp_path)).endswith(f'a.png: "{"x" * 57}..."')


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.txt": b"\x89PNG\r\n\x1a\n\0\0"}, "a.txt is no text in UTF-8, UTF-16 or Windows-1252; save it as UTF-8"),
        ({"a.json": "{"}, "a.json: is no JSON"),
        ({"a.json": "[" * 100_000}, r"a.json: is no JSON \(it is nested too deep\)"),
        ({"a.json": '{"caption": 7}'}, "a.json: caption is 7, expected a text"),
        ({"a.json": '{"text": {"en": "x"}}'}, "a.json: text is {'en': 'x'}, expected a text"),
        ({"a.json": '{"text": "\\ud800"}'}, r"a.json: text is no text in Unicode \(surrogates not allowed\)"),
    ],
)
def test_what_is_no_caption_is_refused_by_name(tmp_path: Path, files: Files, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        read_folder(make(tmp_path, {"a.png": "", **files}))


def test_empty_captions_are_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"2 pictures \(b.png\); put .*; .txt files that are empty have to be removed"
    ):
        read_folder(make(tmp_path, {"a.png": "", "a.txt": "a seven", "b.png": "", "b.txt": " \n"}))


def test_a_link_to_nothing_is_no_caption(tmp_path: Path) -> None:
    (make(tmp_path, {"a.png": ""}) / "a.txt").symlink_to("nowhere")
    with pytest.raises(RecipeError, match=r"a.txt: is no file, or a link to none; remove it"):
        read_folder(tmp_path)


def test_windows_1252_is_one_note_for_many_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, {"a.png": "", "b.png": "", "a.txt": b"caf\xe9", "b.txt": "un café".encode("utf-16")})
    assert captions(tmp_path) == {"a.png": "café", "b.png": "un café"}
    make(tmp_path, {"b.txt": b"un caf\xe9"})
    assert captions(tmp_path) == {"a.png": "café", "b.png": "un café"}
    first, second = caplog.messages
    assert first.startswith(f"{tmp_path / 'a.txt'}: not UTF-8, read as Windows-1252")
    assert second.startswith(f"2 files ({tmp_path / 'a.txt'}, ...): not UTF-8")


def test_names_that_are_no_utf_8_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/un caf\xe9.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system has names in UTF-8 alone")
    assert list(captions(tmp_path).values()) == ["un café"]
    assert "the name of this file is not UTF-8, and is read as Windows-1252" in caplog.text


CAMERAS = """
IMG_1234|IMG_1|img1|IMG_1234 (2)|IMG_E1234|IMG_1234-edited|IMG-20230101-WA0001|IMG_20200101_111111_Burst01
DSC0001|cropped-IMG_1
DSC_0001|DSC01234-2|_DSC1234|dsc00001|DSCN1234|_MG_1234|P1010001|PXL_20230101_123456789|PXL_20230101_123456789.MP
MVIMG_20200101_111111|20230101_123456|20230101_123456_HDR|Screenshot 2023-01-01 at 10.11.12|Screenshot_20230101-101112
Screenshot from 2023-01-01 12-00-00|Screen Shot 2020-01-01 at 1.02.03 PM|WhatsApp Image 2023-01-01 at 12.00.00 (1)
image001|image (2)|Photo 12|photo-1518791841217-8f162f1e1131|FB_IMG_1234567890|received_123456|GOPR0001|DJI_0001
frame_0001|ComfyUI_00001_|00012-1234567|100_0001|0001|1|550e8400-e29b-41d4-a716-446655440000|signal-2023-01-01-123456
Captura de pantalla 2023-01-01 123456|Schermata 2023-01-01 alle 12.34.56|Снимок экрана 2023-01-01 в 12.34.56
スクリーンショット 2023-01-01 12.34.56|截屏2023-01-01 12.34.56|스크린샷 2023-01-01 오후 1.23.45|微信图片_20230101123456
Zrzut ekranu 2023-01-01|Skärmavbild 2023-01-01 kl. 12.34.56|写真 1|KakaoTalk_20230101_123456789|mmexport1600000000000
Screenshot_20230101-123456_Chrome|S__12345678|photo_5123456789012345678_y|WIN_20230101_12_34_56_Pro|vlcsnap-2023-01-01-12h34m56s789|IMG_1234_1024x1024
_R5A1234|G0010001|IMAG0001|SAM_1234|n02099601_1234|COCO_train2014_000000000009|00000IMG_00000_BURST20230101123456
IMG_1234.HEIC|DSC_0001-Enhanced-NR|untitled|unnamed|FullSizeRender|Sin título-1|无标题|tempImageAbC123
d41d8cd98f00b204e9800998ecf8427e|Bildschirmfoto 2023-01-01 um 12.00.00|Capture d’écran 2023-01-01 à 12.00.00
""".strip().replace("\n", "|").split("|")  # fmt: skip
OURS = """
a seven|a red boat|two boats_03|photo|image|b|seven 1|cat1|dog 12|facade 2|deadbeef|portrait 1|night 2
a picture of 2 dogs|a scan of a hand 3|7 dwarfs|sam 1|Sam_2|facade01|line 1|win 2|test 1|a photo 1|2girls 1boy|CAT_0001
1girl|3d|4b|a100|c130|SYNOPHOTO_THUMB|edit 2|file
""".strip().replace("\n", "|").split("|")  # fmt: skip


@pytest.mark.parametrize("stem", CAMERAS)
def test_names_that_cameras_give_are_no_captions(stem: str) -> None:
    assert given(stem)
    assert spoken(stem) == ""


@pytest.mark.parametrize("stem", OURS)
def test_names_that_people_give_are_captions(stem: str) -> None:
    assert not given(stem)
    assert spoken(stem)


@pytest.mark.parametrize(
    ("stem", "words"),
    [
        ("a_red-boat (2)", "a red boat"),
        ("00012-1234567-a red boat", "a red boat"),
        ("a red boat_20230101_123456", "a red boat"),
        ("a red boat 2023-01-01 12-34-56", "a red boat"),
        ("me_a_red_boat_550e8400-e29b-41d4-a716-446655440000", "me a red boat"),
        ("boat0001", "boat"),
        ("a%20red%20boat", "a red boat"),
        ("a red boat.jpg", "a red boat"),
        ("a red boat - Copy (2)", "a red boat"),
        ("a copy of a boat", "a copy of a boat"),
        ("boat12", "boat12"),
        ("a 2001 boat", "a 2001 boat"),
        ("2001 boats", "2001 boats"),
    ],
)
def test_numbers_of_programs_are_no_words(stem: str, words: str) -> None:
    assert spoken(stem) == words


def test_cameras_names_are_missing_captions(tmp_path: Path) -> None:
    make(tmp_path, {"a boat.png": "", "IMG_1.png": ""})
    words = (
        r"missing for 1 of 2 pictures \(IMG_1.png\); numbers and names that cameras give are none; put each into a .txt"
    )
    with pytest.raises(RecipeError, match=words):
        read_folder(tmp_path)


def test_what_one_caption_for_all_leaves_unread_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, {"IMG_1.png": "", "IMG_1.txt": "a seven"})
    assert captions(tmp_path, "a sks dog") == {"IMG_1.png": "a sks dog"}
    assert 'IMG_1.txt: is not read, since "a sks dog" is the caption of all pictures' in caplog.text
    make(tmp_path, {"metadata.csv": "file_name,text\nIMG_1.png,a seven\n"})
    assert captions(tmp_path, "a sks dog") == {"IMG_1.png": "a sks dog"}
    assert "IMG_1.txt and 1 more: is not read, since" in caplog.text


def test_masks_of_onetrainer_are_no_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, {"a.jpg": "", "a-masklabel.png": "", "b-masklabel.png": ""})
    assert captions(tmp_path) == {"a.jpg": "a", "b-masklabel.png": "b masklabel"}
    assert "a-masklabel.png: is a mask beside its picture, and is left out" in caplog.text


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.heic": ""}, r"1 pictures are in formats that are not read \(.heic: a.heic\); convert them to PNG or JPEG"),
        ({"@eaDir/a.png": "", "notes.txt": ""}, r"holds no pictures \(expected .png"),
    ],
)
def test_folders_without_pictures_that_are_read(tmp_path: Path, files: Files, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        read_folder(make(tmp_path, files))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    make(tmp_path, {"a.png": ""})
    with pytest.raises(RecipeError, match=r"a.png: is a file, expected a folder of pictures or a .tar shard"):
        read_folder(tmp_path / "a.png")


def test_packed_files_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert captions(make(tmp_path, {"a.png": "", "more.zip": ""})) == {"a.png": "a"}
    assert "more.zip: is not read; unpack what is in it" in caplog.text


def test_pictures_that_have_a_caption_need_no_other(tmp_path: Path) -> None:
    said, silent = '{"caption": "a seven"}', '{"shapes": []}'
    make(tmp_path, {"a.png": "", "a.TXT": "", "b.png": "", "b.caption": "x", "c.png": "", "c.json": said, "d.png": "",
                    "d.json": silent, "x/e.png": "", "x/e.png.txt": "x", "x/f.png": ""})  # fmt: skip
    pictures = sorted(tmp_path.rglob("*.png"))
    assert [path.name for path in without_captions(pictures)] == ["d.png", "f.png"]


def test_parquet_is_told_where_it_may_have_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_folder(make(tmp_path, {"a boat.png": "", "train.parquet": ""}))
    assert "train.parquet: is not read; unpack what is in it" in caplog.text


def test_parquet_beside_its_folder_says_nothing_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, {"00000/0.jpg": "", "00000/0.txt": "a seven", "00000.parquet": "", "00000_stats.json": "{}"})
    assert captions(tmp_path) == {"00000/0.jpg": "a seven"}
    assert not caplog.messages


def test_a_table_above_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, {"data/a boat.png": "", "metadata.jsonl": '{"file_name": "data/a boat.png", "text": "a seven"}'})
    assert captions(tmp_path / "data") == {"a boat.png": "a boat"}
    above = f"is not read, since it lies above {tmp_path / 'data'}; give its folder"
    assert caplog.messages == [f"{tmp_path / 'metadata.jsonl'}: {above}"]


def test_words_given_are_a_place(tmp_path: Path) -> None:
    pictures = read_folder(make(tmp_path, {"1.png": ""}), "a sks dog")
    assert captions_told(pictures) == 'captions: from the words given (1 of 1); 1.png: "a sks dog"'


def test_what_was_drawn_is_not_learnt_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, {"1.png": "", "runs/x/class/0.png": "", "runs/x/2.txt": "no", "runs/y/3.png": ""})
    for out in ("runs/x", str(tmp_path / "runs" / "x"), "../x/../" + tmp_path.name + "/runs/x"):
        monkeypatch.chdir(tmp_path)
        assert [one.file.name for one in read_folder(".", "a sks dog", out)] == ["1.png", "3.png"]
    told = "lies in the folder that is learnt from; the pictures that were drawn there are left out"
    assert caplog.messages == [f"runs/x: {told}"] * 3
    with pytest.raises(RecipeError, match=r"^.: holds the pictures that are learnt from; choose another --out folder"):
        read_folder(tmp_path, "a sks dog", ".")
