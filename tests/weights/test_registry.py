"""The names that load() accepts."""

import subprocess
import sys

import pytest

from gradina.errors import WeightsError
from gradina.weights import registry
from gradina.weights.formats.diffusers import write_folder
from gradina.weights.open import open_source


def test_order_in_which_names_are_resolved(tiny, assert_same, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "ASSETS", tmp_path / "assets")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "assets").mkdir()
    assert registry.shipped() == {}
    with pytest.raises(WeightsError, match=r"no model 'emoji'.*not shipped \(there is: nothing\)"):
        registry.locate()
    write_folder(tiny(), tmp_path / "assets" / "digits")
    write_folder(tiny("sd2"), tmp_path / "assets" / "other")
    assert list(registry.shipped()) == ["digits", "other"]
    assert registry.locate() == registry.shipped()["digits"]
    assert open_source().name == "digits"
    write_folder(tiny(), tmp_path / "assets" / "emoji")
    assert open_source().name == "emoji"
    assert open_source("other").prediction == "v"
    write_folder(tiny("inpainting"), tmp_path / "other")  # what is here goes before what is shipped
    assert open_source("other").unet.config.channels == 9
    (tmp_path / "empty").mkdir()
    for source in ("empty", tmp_path / "empty"):
        with pytest.raises(WeightsError, match=r"is a folder without model_index\.json"):
            registry.locate(source)
    for source in ("./tiny/model", "nothing", "/no/where", tmp_path / "a" / "b"):
        with pytest.raises(WeightsError, match="no such folder or file"):
            registry.locate(source)


def test_listing_models_does_not_import_torch():
    code = "import sys, gradina.weights.registry as z; z.shipped(); z.cached(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
