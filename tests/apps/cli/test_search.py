"""caption and search as a person types them: what is said, what is kept for the next time, and every mistake."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from gradina.apps.cli import embeddings
from gradina.apps.cli.main import main
from gradina.pipeline.model import StableDiffusion
from gradina.tasks import captioning, retrieval
from gradina.training.data.image_folder import read_image_folder
from gradina.weights.formats.clip import ContrastivePair, write_pair

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def pair_folder(pair: ContrastivePair, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The pair that knows four colours, as a folder on disk."""
    folder = tmp_path_factory.mktemp("pairs") / "colours"
    write_pair(pair, folder)
    return str(folder)


@pytest.fixture
def room(tmp_path: Path, squares: dict[str, Image.Image], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures in it, to work in, and a cache beside it."""
    room = tmp_path / "room"
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    (room / "photos" / "more").mkdir(parents=True)
    monkeypatch.chdir(room)
    for name, place in (("red", "a.png"), ("green", "b.jpg"), ("blue", "more/c.webp"), ("yellow", "more/d.PNG")):
        squares[name].resize((96, 96)).save(room / "photos" / place, quality=95)
    (room / "photos" / "notes.txt").write_text("no picture")
    (room / "photos" / ".hidden.png").write_text("no picture")
    return room


def lines(capsys: Capture) -> list[str]:
    said = capsys.readouterr()
    assert said.err == ""
    return said.out.splitlines()


def test_caption(room: Path, pair_folder: str, capsys: Capture) -> None:
    assert main(["caption", "photos/a.png", "-m", pair_folder, "--best", "3"]) == 0
    said = [re.fullmatch(r" *(\d+\.\d) %  (.*)", line) for line in lines(capsys)]
    assert len(said) == 3
    assert {said[0][2], said[1][2]} == {"a red square", "a red square on white"}  # type: ignore[index]
    shares = [float(match[1]) for match in said if match]
    assert shares == sorted(shares, reverse=True)
    assert 80 < sum(shares[:2]) <= 100.1


def test_caption_takes_pictures_and_folders(room: Path, pair_folder: str, capsys: Capture) -> None:
    assert main(["caption", "photos/b.jpg", "photos", "-m", pair_folder, "-b", "1"]) == 0
    said = lines(capsys)
    assert said[::2] == ["photos/b.jpg", "photos/a.png", "photos/more/c.webp", "photos/more/d.PNG"]
    for line, colour in zip(said[1::2], ("green", "red", "blue", "yellow"), strict=True):
        assert f"a {colour} square" in line


def test_caption_with_phrases_as_json(room: Path, pair_folder: str, capsys: Capture) -> None:
    Path("phrases.txt").write_text("\ufeffa blue square\n\n  a yellow square \r\na blue square\n", encoding="utf-8")
    assert main(["caption", "photos/more", "-m", pair_folder, "--phrases", "phrases.txt", "--json"]) == 0
    rows = json.loads("\n".join(lines(capsys)))
    assert [row["picture"] for row in rows] == ["photos/more/c.webp", "photos/more/d.PNG"]
    assert [row["captions"][0]["text"] for row in rows] == ["a blue square", "a yellow square"]
    for row in rows:
        assert len(row["captions"]) == 2
        assert sum(each["probability"] for each in row["captions"]) == pytest.approx(1, abs=1e-5)


def test_search(room: Path, pair_folder: str, capsys: Capture) -> None:
    for words in (["a yellow square"], ["a", "yellow", "square"]):
        assert main(["search", "photos", *words, "-m", pair_folder]) == 0
        said = [line.split(maxsplit=1) for line in lines(capsys)]
        assert len(said) == 4
        assert said[0][1] == "photos/more/d.PNG"
        scores = [float(score) for score, _ in said]
        assert scores == sorted(scores, reverse=True)
    assert main(["search", "photos", "a red square", "-m", pair_folder, "--best", "1"]) == 0
    assert [line.split()[1] for line in lines(capsys)] == ["photos/a.png"]


@pytest.mark.parametrize("name", ["hits.png", "hits.jpg"])
def test_search_writes_a_grid_of_hits(room: Path, pair_folder: str, capsys: Capture, name: str) -> None:
    assert main(["search", "photos", "a blue square", "-m", pair_folder, "--best", "3", "--sheet", name]) == 0
    assert lines(capsys)[-1] == name
    with Image.open(name) as sheet:
        values = np.array(sheet.convert("RGB")).astype(int)
    assert values.shape[0] > 2 * 128
    first = values[: values.shape[0] // 2, : values.shape[1] // 2].reshape(-1, 3)
    assert (np.abs(first - (40, 60, 210)).max(1) < 30).mean() > 0.1, "the first picture is blue"


def test_a_model_folder_names_its_pair(
    room: Path, pair: ContrastivePair, tiny_model: Callable[..., StableDiffusion], capsys: Capture
) -> None:
    tiny_model().save("model")
    write_pair(pair, "model/clip")
    assert main(["caption", "photos/a.png", "-m", "model", "-b", "1"]) == 0
    assert "a red square" in lines(capsys)[0]
    assert main(["convert", "model", "copy"]) == 0
    capsys.readouterr()
    assert main(["search", "photos", "a red square", "-m", "copy", "-b", "1"]) == 0
    assert "photos/a.png" in lines(capsys)[0]


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that are looked at, in order."""
    names: list[str] = []
    preprocess = retrieval.preprocess
    monkeypatch.setattr(retrieval, "preprocess", lambda pair, path: names.append(path.name) or preprocess(pair, path))
    return names


def found(folder: str, pair_folder: str, capsys: Capture) -> list[str]:
    assert main(["search", folder, "a red square", "-m", pair_folder]) == 0
    return lines(capsys)


def test_each_picture_is_embedded_once(
    room: Path, pair_folder: str, squares: dict[str, Image.Image], looked: list[str], capsys: Capture
) -> None:
    first = found("photos", pair_folder, capsys)
    assert sorted(looked) == ["a.png", "b.jpg", "c.webp", "d.PNG"]
    looked.clear()
    assert found("photos", pair_folder, capsys) == first
    below = found(str(room / "photos" / "more"), pair_folder, capsys)
    assert {line.split()[1] for line in below} == {str(room / "photos" / "more" / name) for name in ("c.webp", "d.PNG")}
    assert looked == []
    squares["red"].save("photos/b.jpg")  # changed
    squares["red"].save("photos/e.png")  # new
    os.utime("photos/a.png", ns=(1, 1))  # touched
    Path("photos/more/c.webp").rename("photos/f.webp")  # moved
    assert {line.split()[1] for line in found("photos", pair_folder, capsys)[:3]} == {
        "photos/a.png", "photos/b.jpg", "photos/e.png",
    }  # fmt: skip
    assert sorted(looked) == ["b.jpg", "e.png"]
    (kept,) = (room.parent / "cache" / "embeddings").iterdir()
    assert sorted(Path(name).name for name in embeddings._read_cache(kept)) == [
        "a.png",
        "b.jpg",
        "d.PNG",
        "e.png",
        "f.webp",
    ]


def test_a_changed_picture_is_embedded_again_whatever_its_times(
    room: Path, pair_folder: str, squares: dict[str, Image.Image], looked: list[str], capsys: Capture
) -> None:
    picture = Path("photos/a.png")
    for colour in ("red", "blue"):
        looked.clear()
        squares[colour].save(picture)
        picture.write_bytes(picture.read_bytes().ljust(999, b"\0"))
        os.utime(picture, ns=(10**18, 10**18))
        found("photos", pair_folder, capsys)
        assert "a.png" in looked


def test_pairs_do_not_share_cached_embeddings(
    room: Path, pair: ContrastivePair, pair_folder: str, looked: list[str], capsys: Capture
) -> None:
    found("photos", pair_folder, capsys)
    main(["search", "photos", "a red square", "-m", pair_folder, "--dtype", "bf16"])
    assert len(looked) == 8
    assert len(list((room.parent / "cache" / "embeddings").iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"no safetensors", "half", "other"])
def test_a_damaged_cache_is_rebuilt(
    room: Path, pair_folder: str, looked: list[str], capsys: Capture, damage: bytes | str
) -> None:
    import torch
    from safetensors.torch import save_file

    first = found("photos", pair_folder, capsys)
    (kept,) = (room.parent / "cache" / "embeddings").iterdir()
    if damage == "other":
        save_file({"embeddings": torch.zeros(1, 16)}, kept, {"pictures": "[]"})
    else:
        kept.write_bytes(kept.read_bytes()[:99] if isinstance(damage, str) else damage)
    assert found("photos", pair_folder, capsys) == first
    assert found("photos", pair_folder, capsys) == first
    assert len(looked) == 8


def test_embeddings_are_cached_despite_ctrl_c(
    room: Path, pair_folder: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess = retrieval.preprocess

    def interrupted(pair: ContrastivePair, path: Path) -> object:
        if path.name == "c.webp":
            raise KeyboardInterrupt
        return preprocess(pair, path)

    monkeypatch.setattr(retrieval, "BATCH_SIZE", 1)
    monkeypatch.setattr(retrieval, "preprocess", interrupted)
    assert main(["search", "photos", "a red square", "-m", pair_folder]) == 130
    (kept,) = (room.parent / "cache" / "embeddings").iterdir()
    assert sorted(Path(name).name for name in embeddings._read_cache(kept)) == ["a.png", "b.jpg"]


def test_an_unwritable_cache_is_a_note(
    room: Path, pair_folder: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").write_text("")
    monkeypatch.setenv("GRADINA_CACHE", str(room / "file"))
    assert main(["search", "photos", "a red square", "-m", pair_folder, "-b", "1"]) == 0
    said = capsys.readouterr()
    assert "photos/a.png" in said.out
    assert re.fullmatch(r"gradina: note: embeddings are not kept for the next time: .*\n", said.err)


def test_unreadable_pictures_are_noted_once_and_skipped(room: Path, pair_folder: str, capsys: Capture) -> None:
    Path("photos/bad.png").write_text("no picture")
    cut = Path("photos/a.png").read_bytes()[:90]
    Path("photos/cut.png").write_bytes(cut)
    for command in (["caption", "photos"], ["search", "photos", "a red square"]):
        assert main([*command, "-m", pair_folder]) == 0
        said = capsys.readouterr()
        assert said.err.count("\n") == 2
        assert re.search(r"^gradina: note: left out: photos/bad\.png is not a picture", said.err, re.M)
        assert re.search(r"^gradina: note: left out: photos/cut\.png is damaged or truncated", said.err, re.M)
        assert "bad" not in said.out
        assert "cut" not in said.out
    for bad in ("photos/bad.png", "photos/cut.png"):
        assert main(["caption", "photos/b.jpg", bad, "-m", pair_folder]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert re.match(rf"gradina: picture: {re.escape(bad)} is .*\n$", said.err)


def test_file_names_that_are_not_utf8(room: Path, pair_folder: str, capfd: pytest.CaptureFixture[str]) -> None:
    odd = os.fsdecode(b"photos/\xff.png")
    try:
        Path("photos/a.png").rename(odd)
    except OSError:
        pytest.skip("this disk has no such names")
    rest = ["-m", pair_folder]
    for _ in range(2):
        assert main(["search", "photos", "a red square", *rest, "-b", "1", "--sheet", "hits.png"]) == 0
        assert "photos/\ufffd.png" in capfd.readouterr().out
    assert main(["caption", odd, "photos/b.jpg", *rest]) == 0
    assert main(["caption", odd, *rest, "--json"]) == 0


def test_pictures_larger_than_the_limit_for_drawing(room: Path, pair_folder: str, capsys: Capture) -> None:
    Image.new("RGB", (5000, 4000), (40, 60, 210)).save("large.png")
    assert main(["caption", "large.png", "-m", pair_folder, "-b", "1"]) == 0
    assert len(lines(capsys)) == 1


WRONG = [
    (["caption", "none.png"], "picture: none.png does not exist; give the path of a picture"),
    (["caption", "photos/notes.txt"], "picture: photos/notes.txt is not a picture"),
    (["caption", "empty"], "empty: has no pictures in it (expected .png, "),
    (["caption", "photos/a.png", "--best", "0"], "Invalid value for '--best'"),
    (["caption", "photos/a.png", "--phrases", "none.txt"], "--phrases: none.txt cannot be read (No such file"),
    (["caption", "photos/a.png", "--phrases", "photos/a.png"], "--phrases: photos/a.png is not text in UTF-8"),
    (["caption", "photos/a.png", "--phrases", "blank.txt"], "--phrases: blank.txt has no lines"),
    (["caption", "photos/a.png", "-m", "silent"], "phrases: silent has none of its own; give the texts to choose from"),
    (["caption", "photos/a.png", "-m", "photos"], "photos: has no image tower (expected clip/ in a model's folder"),
    (["caption", "photos/a.png", "-m", "nowhere"], "there is no model 'nowhere'"),
    (["caption", "photos/a.png", "-m", "digits"], "digits: has no image tower"),
    (["caption", "unreadable"], "unreadable: has no picture that can be read"),
    (["caption"], "Missing argument"),
    (["search", "none", "red"], "none: there is no such folder; give one"),
    (["search", "photos/a.png", "red"], "photos/a.png: is no folder; give one"),
    (["search", "empty", "red"], "empty: has no pictures in it (expected .png, "),
    (["search", "unreadable", "red"], "unreadable: has no picture that can be read"),
    (["search", "photos", ""], 'words: got none, expected what to look for, such as "a red apple"'),
    (["search", "photos", " ", ""], "words: got none"),
    (["search", "photos"], "Missing argument"),
    (["search", "photos", "red", "--sheet", "hits.bmp"], "--sheet: got hits.bmp, expected a name that ends in .png"),
    (["search", "photos", "red", "--sheet", "nowhere/hits.png"], "--sheet: there is no folder nowhere; make it first"),
    (["search", "photos", "red", "--sheet", "photos/a.png"], "--sheet: got photos/a.png, which is one of the pictures"),
    (["search", "photos", "red", "--device", "none"], "device: none cannot be used here"),
    (["search", "photos", "red", "--threads", "9999999"], "threads: got 9999999"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=lambda value: " ".join(value)[:40])
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, room: Path, pair: ContrastivePair, pair_folder: str, capsys: Capture
) -> None:
    for name in ("empty", "unreadable"):
        Path(name).mkdir()
    Path("unreadable/x.png").write_text("no picture")
    Path("blank.txt").write_text("\n \n")
    if "silent" in arguments:
        from dataclasses import replace

        write_pair(replace(pair, phrases=()), "silent")
    before = sorted(p.relative_to(room) for p in room.rglob("*"))
    assert main(arguments if "-m" in arguments else [*arguments, "-m", pair_folder]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    *notes, last = said.err.splitlines()
    assert message in last
    assert last.startswith("gradina: ")
    assert len(notes) == ("unreadable" in arguments)
    assert sorted(p.relative_to(room) for p in room.rglob("*")) == before


def test_pictures_of_one_stem_have_captions_of_their_own(room: Path, pair_folder: str, capsys: Capture) -> None:
    Path("photos/more/d.jpg").write_bytes(Path("photos/b.jpg").read_bytes())
    assert main(["caption", "photos/more", "--write", "-m", pair_folder]) == 0
    assert lines(capsys) == ["photos/more/c.txt", "photos/more/d.PNG.txt", "photos/more/d.jpg.txt"]
    said = {one.file.name: one.caption for one in read_image_folder("photos/more")}
    assert [said[name].split()[1] for name in ("c.webp", "d.PNG", "d.jpg")] == ["blue", "yellow", "green"]


def test_captions_are_written_for_pictures_without_one(room: Path, pair_folder: str, capsys: Capture) -> None:
    Path("photos/b.txt").write_text("mine")
    Path("photos/more/C.TXT").write_text("mine")
    assert main(["caption", "photos", "--write", "-m", pair_folder]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == ["photos/a.txt", "photos/more/d.txt"]
    assert said.err == "gradina: note: 2 of 4 pictures have captions already, which stay as they are\n"
    assert Path("photos/a.txt").read_text().startswith("a red square")
    assert Path("photos/b.txt").read_text() == "mine"
    assert main(["caption", "photos", "--write", "-m", pair_folder]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err.count("4 of 4 pictures have captions already")) == ("", 1)


@pytest.fixture(scope="session")
def tiny_blip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A captioning model with random weights and a few words, as a folder."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "[DEC]",
        *["a", "red", "green", "blue", "square", "on", "white"],
    ]
    folder = tmp_path_factory.mktemp("blip")
    (folder / "vocab.txt").write_text("\n".join(words))
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"vocab_size": len(words), "bos_token_id": 5, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    vision = {**text, "image_size": 32, "patch_size": 16}
    config = transformers.BlipConfig(text_config={**text, **special, "encoder_hidden_size": 16}, vision_config=vision)
    torch.manual_seed(0)
    transformers.BlipForConditionalGeneration(config).save_pretrained(folder)
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "BlipImageProcessor", "size": {"height": 32, "width": 32}})
    )
    return str(folder)


def test_captions_of_a_captioning_model(room: Path, tiny_blip: str, capsys: Capture) -> None:
    Path("photos/more/broken.png").write_bytes(b"no picture")
    assert main(["caption", "photos", "--by", tiny_blip, "--json", "-q"]) == 0
    said = capsys.readouterr()
    rows = json.loads(said.out)
    assert [row["picture"] for row in rows] == [
        "photos/a.png",
        "photos/b.jpg",
        "photos/more/c.webp",
        "photos/more/d.PNG",
    ]
    assert all(isinstance(row["captions"][0]["text"], str) for row in rows)
    assert "broken.png is not a picture" in said.err
    assert main(["caption", "photos/a.png", "--by", tiny_blip, "-q"]) == 0
    assert main(["caption", "photos", "--by", "nowhere/nothing", "-q"]) == 2
    assert "nowhere/nothing: cannot be used for captions" in capsys.readouterr().err


def test_without_transformers_the_extra_is_named(room: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioning, "find_spec", lambda name: None)
    assert main(["caption", "photos/a.png", "--by", "blip"]) == 2
    assert "captioning models are an extra; install it with: pip install 'gradina[caption]'" in capsys.readouterr().err
