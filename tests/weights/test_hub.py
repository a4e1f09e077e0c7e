"""The hub, by a small server on this machine."""

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.utils
import pytest
import torch
from safetensors.torch import load_file

from gradina.errors import HubError, WeightsError
from gradina.weights import registry
from gradina.weights.convert import convert
from gradina.weights.formats.diffusers import write_folder
from gradina.weights.formats.ldm import write_file
from gradina.weights.hub import fetch, load_patterns, push
from gradina.weights.open import open_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The part of the hub that downloads use: a model's list of files, and the files."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/tiny/model"):
            files = [p for p in self.server.folder.rglob("*") if p.is_file()]
            names = [str(p.relative_to(self.server.folder)) for p in files]
            if "/tree/" in path:
                tree = [
                    {
                        "type": "file",
                        "path": n,
                        "size": p.stat().st_size,
                        "oid": hashlib.sha1(p.read_bytes()).hexdigest(),
                    }
                    for n, p in zip(names, files, strict=True)
                ]
                return self.answer(json.dumps(tree).encode())
            siblings = [{"rfilename": name} for name in names]
            body = {"_id": "1", "id": "tiny/model", "modelId": "tiny/model", "sha": COMMIT, "siblings": siblings}
            return self.answer(json.dumps(body | {"private": False, "tags": [], "downloads": 0}).encode())
        if path.startswith("/tiny/model/resolve/"):
            file = self.server.folder / path.split("/", 5)[5]
            if file.is_file():
                return self.answer(file.read_bytes())
            return self.answer(b"{}", 404, {"X-Error-Code": "EntryNotFound"})
        if "/gated/" in path:
            return self.answer(b"{}", 403, {"X-Error-Code": "GatedRepo"})
        return self.answer(b'{"error":"Repository not found"}', 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, body, status=200, headers=None):
        self.send_response(status)
        etag = hashlib.sha1(body).hexdigest()
        for name, value in {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(body)),
                            **(headers or {})}.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tiny, tmp_path, monkeypatch):
    """A hub with one model, tiny/model, which has a pickle and a variant that are not needed."""
    folder = tmp_path / "served"
    write_folder(tiny(), folder)
    for name in ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
                 "safety_checker/model.safetensors"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not needed")
    write_file(tiny(), folder / "single.safetensors")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder, server.asked = folder, []
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils, "are_progress_bars_disabled", lambda *_: True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


def cut(hub, *names):
    for name in names:
        (hub.folder / name).unlink()


def fetched(hub):
    return {path.split("/resolve/")[1].split("/", 1)[1] for path in hub.asked if "/resolve/" in path}


def test_model_is_fetched_once_and_then_loaded_offline(hub, tiny, assert_same, monkeypatch):
    parts = open_source("tiny/model")
    assert parts.name == "tiny/model"
    assert_same(parts, tiny())
    fetched = {path.split("/resolve/")[1].split("/", 1)[1] for path in hub.asked if "/resolve/" in path}
    assert "unet/diffusion_pytorch_model.safetensors" in fetched
    assert not [name for name in fetched if ".bin" in name or "fp16" in name or "safety" in name or "single" in name]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert_same(open_source("tiny/model"), tiny())
    assert hub.asked == []
    assert list(registry.cached()) == ["tiny/model"]
    assert (registry.cached()["tiny/model"] / "model_index.json").is_file()


def test_single_file_of_the_hub(hub, tiny, assert_same):
    assert_same(open_source("tiny/model/single.safetensors"), tiny())
    with pytest.raises(HubError, match="not that file in it"):
        fetch("tiny/model/none.safetensors")


def test_errors_of_the_hub_say_what_to_do(hub):
    with pytest.raises(HubError, match="tiny/none: the hub has no such model"):
        fetch("tiny/none")
    with pytest.raises(HubError, match="gated/model: its owner asks for consent"):
        fetch("gated/model")
    with pytest.raises(HubError, match="is no name of the hub"):
        fetch("tiny/mo..del")


def test_unreachable_hub_is_one_line(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="tiny/model: is not in the cache, and the hub cannot be reached") as caught:
        fetch("tiny/model")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="is not in the cache, and HF_HUB_OFFLINE is set"):
        fetch("tiny/model")


def test_patterns_of_a_variant():
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in load_patterns("fp16")
    assert "unet/diffusion_pytorch_model.safetensors" not in load_patterns("fp16")
    assert "vae/diffusion_pytorch_model-*-of-*.safetensors" in load_patterns()


def test_network_in_fp16_only_is_fetched_with_a_warning(hub, tiny, assert_same, caplog):
    whole = hub.folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole.rename(whole.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert_same(open_source("tiny/model"), tiny())
    assert "without a variant" in caplog.text
    assert not [name for name in fetched(hub) if ".bin" in name]


def test_variant_of_only_one_network_is_fetched_with_a_warning(hub, tiny, assert_same, caplog):
    whole = hub.folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole.rename(whole.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert_same(open_source("tiny/model", variant="fp16"), tiny())
    assert "in the variant fp16" in caplog.text
    with pytest.raises(WeightsError, match=r"has no diffusion_pytorch_model\.fp32\.safetensors"):
        open_source("tiny/model", variant="fp32")


def test_pickles_are_fetched_only_for_conversion(hub, tiny, assert_same, tmp_path):
    whole = hub.folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(whole), whole.with_suffix(".bin"))
    cut(hub, "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(WeightsError, match=r"there, `gradina convert tiny/model model-safe` \(there is: nothing\)"):
        open_source("tiny/model")
    assert not [name for name in fetched(hub) if ".bin" in name]
    assert_same(open_source(convert("tiny/model", tmp_path / "out")), tiny())
    with pytest.raises(WeightsError, match=r"is a pickle.*`gradina convert tiny/model model-safe` reads it safely"):
        open_source("tiny/model")


def test_only_the_autoencoder_is_fetched_for_vae(hub, tiny, assert_same):
    assert_same(open_source("tiny/model/single.safetensors", vae="tiny/model"), tiny())
    assert not [name for name in fetched(hub) if name.startswith(("unet", "text_encoder"))]
    opened = open_source("tiny/model/single.safetensors", vae="tiny/model/single.safetensors")
    assert opened.about["vae"] == "tiny/model/single.safetensors"
    with pytest.raises(HubError, match="tiny/none: the hub has no such model"):
        open_source("tiny/model/single.safetensors", vae="tiny/none")


def test_push_uploads_the_folder_and_its_card(tiny, monkeypatch):
    calls = {}

    def upload(self, *, repo_id, folder_path, commit_message):
        calls["upload"] = (
            repo_id,
            sorted(str(p.relative_to(folder_path)) for p in folder_path.rglob("*") if p.is_file()),
        )
        calls["card"] = (folder_path / "README.md").read_text()

    def create(self, name, *, private, exist_ok):
        calls["create"] = name, private, exist_ok
        return f"https://huggingface.co/{name}"

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    assert push(tiny(), "me/model", private=True) == "https://huggingface.co/me/model"
    assert calls["create"] == ("me/model", True, True)
    assert calls["upload"][0] == "me/model"
    assert {"README.md", "model_index.json", "unet/diffusion_pytorch_model.safetensors"} <= set(calls["upload"][1])
    assert 'gradina.load("me/model")' in calls["card"]


def test_failed_push_is_one_line(tiny, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(hub.folder / "none"))
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    with pytest.raises(HubError, match="me/model: ") as caught:
        push(tiny(), "me/model")
    assert "\n" not in str(caught.value)
