"""Any file, given to any command: it is read, or refused with exit code 2 and one line that names it."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from gradina import Picture, Request
from gradina.apps.cli.main import main
from gradina.pipeline.model import StableDiffusion

Tiny = Callable[..., StableDiffusion]


class Attack:
    """An object whose pickle would run a program."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (eval, ("print('run')",))


def png(**chunks: bytes) -> bytes:
    """A small PNG with chunks of any bytes after its header."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    data = file.getvalue()
    made = b"".join(
        struct.pack(">I", len(body)) + kind.encode() + body + struct.pack(">I", zlib.crc32(kind.encode() + body))
        for kind, body in chunks.items()
    )
    return data[:33] + made + data[33:]


def header(content: object, data: bytes = b"") -> bytes:
    """A safetensors file with that header."""
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


def torch_file(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def tar(members: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as made:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return file.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, data in members.items():
            made.writestr(name, data)
    return file.getvalue()


def latents() -> bytes:
    about = {"format": "gradina latents 1", "width": "64", "height": "64"}
    return save({"latents": torch.zeros(4, 8, 8)}, about)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
CORPUS: dict[str, bytes] = {
    "empty": b"",
    "one-byte": b"\0",
    "zeros": bytes(4096),
    "text": b"a seven on paper\nand more: yes, 3\n",
    "utf8-bom": b"\xef\xbb\xbfa seven",
    "utf16": "a seven, café".encode("utf-16"),
    "cp1252": "a child\u2019s café".encode("cp1252"),
    "html": b"<!DOCTYPE html><html>404</html>",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    "json-null": b"null",
    "json-list": b"[1, [2], {}]",
    "json-deep": b"[" * 100_000,
    "json-object": b'{"file_name": 3, "text": null, "model": {}, "steps": "x"}',
    "json-numbers": b'{"a": NaN, "b": 1e999, "c": -0}',
    "toml": b'name = 3\n[data]\nsource = ["x"]\n[[unet]]\nsteps = -1\n',
    "png": png(),
    "png-cut": png()[:60],
    "png-huge": png().replace(struct.pack(">II", 64, 64), struct.pack(">II", 60_000, 60_000)),
    "png-text": png(tEXt=b"parameters\0" + b"x" * 9, zTXt=b"parameters\0\0notzlib", iTXt=b"parameters\0\1"),
    "png-infotext": png(tEXt=b"parameters\0a cat\nSteps: 99999999999999999999, Sampler: \xff, CFG scale: 1e999"),
    "png-json": png(tEXt=b'gradina\0{"gradina": 1, "request": {"prompt": 3, "loras": [[]]}, "format": []}'),
    "png-paths": png(
        tEXt=b'gradina\0{"gradina": "1", "request": {"init_image": {"path": "/none", "sha256": "0"}}, "format": 1}'
    ),
    "png-comfy": png(tEXt=b'prompt\0{"1": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "seed": []}}}'),
    "jpeg-cut": b"\xff\xd8\xff\xe1\xff\xffExif\0\0II*\0\x08\0\0\0\xff\xff",
    "gif": b"GIF89a\x01\0\x01\0\0\0\0",
    "tiff-loop": b"II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0",
    "latents": latents(),
    "latents-cut": latents()[:-9],
    "safetensors-none": header({}),
    "safetensors-list": header([1]),
    "safetensors-null": header({"a": None}),
    "safetensors-long": struct.pack("<Q", 2**63) + b"{}",
    "safetensors-negative": header({"a": {**F32, "data_offsets": [-8, 0]}}, bytes(8)),
    "safetensors-dtype": header({"a": {**F32, "dtype": "F3"}}, bytes(8)),
    "safetensors-metadata": header({"__metadata__": {"a": 3}, "a": F32}, bytes(8)),
    "safetensors-scalar": save({"lora_unet_conv_in.alpha": torch.tensor(1.0)}),
    "safetensors-odd": save({"": torch.zeros(0), "emb_params": torch.zeros(0, 3), "states": torch.zeros(2).char()}),
    "safetensors-gradina": save({"a": torch.zeros(2)}, {"gradina": '{"unet": [], "tokenizer": 3, "defaults": {}}'}),
    "safetensors-unet": save({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2, 4, 3, 3)}),
    "safetensors-parts": save(
        {
            "model.diffusion_model.out.2.weight": torch.zeros(4),
            "first_stage_model.decoder.conv_in.weight": torch.zeros(2),
            "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": torch.zeros(3),
        }
    ),
    "pickle": torch_file({"a": torch.zeros(2)}),
    "pickle-cut": torch_file({"a": torch.zeros(2)})[:200],
    "pickle-list": torch_file([1, 2]),
    "pickle-attack": torch_file({"a": Attack()}),
    "pickle-plain": pickle.dumps({"a": 1}),
    "pickle-word": torch_file({"string_to_param": {"*": torch.zeros(2, 3, 4)}, "name": 3}),
    "zip": zipped({"a.txt": b"x", "archive/data.pkl": b"no"}),
    "tar": tar({"a.png": png(), "a.txt": b"a seven"}),
    "tar-gz": tar({"a.png": png(), "a.txt": b"a seven"}, "w:gz"),
    "tar-cut": tar({"a.png": png(), "a.txt": b"a seven"})[:700],
    "tar-odd": tar({"../a.png": png(), "a.json": b"[]", "/b.png": b"", "b.txt": b"\xff\xfe\0"}),
    "gguf": b"GGUF\3\0\0\0" + bytes(64),
}  # fmt: skip

# Commands with a FILE, or with a FOLDER that has the file under the name after the colon.
COMMANDS = (
    "info FILE", "again FILE -m MODEL --steps", "encode FILE -m MODEL", "decode FILE -m MODEL -o out.png",
    "x -m MODEL -i FILE", "x -m MODEL -i photo.png --mask-image FILE", "x -m MODEL --lora FILE",
    "x -m MODEL --concept FILE", "x -m MODEL --edit FILE", "x -m FILE", "x -m MODEL --tiny FILE --film film.gif",
    "x -m MODEL --vae FILE", "x -m MODEL --vae FOLDER:config.json", "x -m FOLDER:model_index.json",
    "convert FILE out.safetensors", "convert FILE out", "push FILE owner/name", "train FILE",
    "caption FILE", "caption photo.png --phrases FILE", "search FILE x", "search FOLDER:x.png x",
    "finetune FILE", "finetune FOLDER:s.tar", "finetune FOLDER:a.txt", "finetune FOLDER:metadata.jsonl",
    "finetune FOLDER:metadata.csv", "finetune FOLDER:b.png", "finetune pictures --validation FILE", "invert FILE",
    "dreambooth FILE", "imagic FILE x",
)  # fmt: skip
TRAINING_COMMANDS = ("finetune", "invert", "dreambooth", "imagic")


@pytest.fixture(scope="module")
def folder(tiny_model: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a picture, and pictures with captions."""
    folder = tmp_path_factory.mktemp("malformed")
    tiny_model("sd1").save(folder / "model")
    Picture(Image.new("RGB", (64, 64), "red"), 0, Request(seed=0)).save(folder / "photo.png")
    (folder / "pictures").mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "pictures" / "a red boat.png")
    return folder


def arguments(command: str, name: str, data: bytes) -> list[str]:
    """The words of a command, with a file of these bytes in the current folder."""
    words = []
    for word in command.split():
        if word == "FILE":
            Path(name).write_bytes(data)
            word = name
        elif word.startswith("FOLDER:"):
            Path(name).mkdir()
            Image.new("RGB", (64, 64), "red").save(Path(name) / "a.png")
            (Path(name) / word.partition(":")[2]).write_bytes(data)
            word = name
        words.append({"MODEL": "../model"}.get(word, word))
    if words[0] in TRAINING_COMMANDS:
        words += ["-m", "../model", "--dry-run"]
    return [word for word in words if word != "--steps"]


def check(words: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs a command: exit code 0, or 2 and one line that names the file."""
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which the process would print as notes
        code = main(words)
    err = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("gradina: note: ")]
    assert code in (0, 2), err
    if code == 2:
        assert len(err) == 1, err
        assert err[0].startswith("gradina: "), err
        assert name in err[0], err


@pytest.fixture
def working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty current folder; pictures and model are in the one above."""
    monkeypatch.setenv("GRADINA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made = folder / tmp_path.name
    made.mkdir()
    for name in ("photo.png", "pictures"):
        (made / name).symlink_to(folder / name)
    monkeypatch.chdir(made)
    return made


@pytest.mark.parametrize("command", COMMANDS)
def test_malformed_files_are_read_or_refused_by_name(
    working_folder: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = []
    for kind, data in CORPUS.items():
        name = f"malformed-{kind}{'.tar' if kind.startswith('tar') else ''}"
        try:
            check(arguments(command, name, data), name, capsys)
        except Exception as error:
            wrong.append(f"{kind}: {error!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["malformed-folder", "malformed-link", "malformed-missing"])
@pytest.mark.parametrize("command", [command for command in COMMANDS if "FILE" in command])
def test_missing_files_are_refused_by_name(
    working_folder: Path, command: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("malformed-folder").mkdir()
    Path("malformed-link").symlink_to("nowhere")
    check(
        [name if word == "malformed-file" else word for word in arguments(command, "malformed-file", b"")], name, capsys
    )


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file of the corpus in which some bytes are changed or removed."""
    kind = draw(st.sampled_from(sorted(kind for kind, data in CORPUS.items() if data)))
    data = bytearray(CORPUS[kind])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
    return kind, bytes(data)


NUMBER = itertools.count()  # a name for each run, as an example is run more than once
READING_COMMANDS = [
    command for command in COMMANDS if command.split()[0] in ("info", "decode", "x", "convert", "train", "finetune")
]


@given(file=damaged(), command=st.sampled_from(READING_COMMANDS))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_damaged_files_are_read_or_refused_by_name(
    working_folder: Path, file: tuple[str, bytes], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, data = file
    name = f"malformed-{next(NUMBER)}{'.tar' if kind.startswith('tar') else ''}"
    check(arguments(command, name, data), name, capsys)
