"""Files of all programs, by value, and compared with what the package sd-parsers reads in them.

Where sd-parsers is wrong, the expected value is the right one, and the test says so.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sd_parsers import ParserManager

from gradina.errors import PictureError
from gradina.images.metadata import PROGRAMS, read_picture
from gradina.images.programs import comfyui
from gradina.images.programs.names import sampler_and_schedule
from gradina.images.programs.settings import to_request
from gradina.request import Request

from .conftest import A1111, FILES, KITE, NOVEL_CHUNKS, record_of, write_png

READERS = (*PROGRAMS.values(), comfyui.read)
UNKNOWN_TO_SD_PARSERS = {"swarmui", "easydiffusion", "easydiffusion-shown", "drawthings"}  # which it does not know


@pytest.mark.parametrize("name", FILES)
def test_settings_of_every_program(tmp_path: Path, name: str) -> None:
    record = record_of(tmp_path, FILES[name])
    assert record.source == name.split("-")[0]
    got = {key: getattr(record.request, key) for key in KITE}
    assert got == KITE
    size = (64, 128) if name == "novelai" else (512, 768)  # which has no size: that of the picture
    assert (record.request.width, record.request.height) == size
    sampler = {"invokeai-dream": "lms", "fooocus": "dpmpp_2m_sde"}.get(name, "dpmpp_2m")
    schedule = "linspace" if name in ("invokeai-2", "invokeai-dream", "novelai") else "karras"
    assert (record.request.sampler, record.request.schedule) == (sampler, schedule)
    if name != "invokeai-dream":
        assert record.model
        assert record.model["name"].removesuffix(".safetensors") in (
            "sd-1.5", "Stable Diffusion XL", "NovelAI Diffusion V4",
        )  # fmt: skip


@pytest.mark.parametrize("name", sorted(FILES.keys() - UNKNOWN_TO_SD_PARSERS))
def test_equals_sd_parsers(tmp_path: Path, name: str) -> None:
    path = write_png(tmp_path / "a.png", FILES[name])
    parsed = ParserManager().parse(path)
    assert parsed
    sampler, request = parsed.samplers[0], read_picture(path).request
    assert request.prompt == ", ".join(prompt.value for prompt in sampler.prompts)
    assert request.negative_prompt == ", ".join(prompt.value for prompt in sampler.negative_prompts)
    expected = {**parsed.metadata, **sampler.parameters}
    assert request.seed == int(expected["seed"])
    assert request.guidance_scale == float(expected["cfg_scale"])
    assert request.steps == int(expected["steps"])
    assert request.sampler == sampler_and_schedule(sampler.name, "", [])["sampler"]
    if "width" in expected:
        assert (request.width, request.height) == (expected["width"], expected["height"])
    model = read_picture(path).model
    if sampler.model and sampler.model.name:  # sd-parsers does not see the newer `name` of InvokeAI's models
        assert model
        assert (model["name"], model.get("hash")) == (sampler.model.name, sampler.model.hash)
    else:
        assert name in ("invokeai-new", "invokeai-dream")


def test_where_sd_parsers_is_wrong(tmp_path: Path) -> None:
    """It splits at `Negative prompt:` anywhere, breaks at a second one, and tears quoted values."""
    inside = A1111.replace("山\nNegative prompt: blurry", "no Negative prompt: x")
    path = write_png(tmp_path / "a.png", {"parameters": inside})
    parsed = ParserManager().parse(path)
    assert parsed
    assert parsed.samplers[0].prompts[0].value == "a red kite, no"
    request = read_picture(path).request
    assert (request.prompt, request.negative_prompt) == ("a red kite, no Negative prompt: x", "")

    path = write_png(path, {"parameters": A1111.replace("blurry", "blurry\nNegative prompt: ugly")})
    with pytest.raises(ValueError, match="too many values to unpack"):
        ParserManager().parse(path)
    assert read_picture(path).request.negative_prompt == "blurry\nugly"

    path = write_png(path, {"parameters": A1111.replace("sd-1.5", 'my:model, Lora hashes: "x: a, y: b"')})
    parsed, record = ParserManager().parse(path), read_picture(path)
    assert parsed
    assert parsed.samplers[0].model
    assert parsed.samplers[0].model.name is None
    assert record.model == {"name": "my:model", "hash": "12ab"}
    assert any(note.startswith("Lora hashes: x: a, y: b (") for note in record.notes)


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("invokeai", []),
        ("invokeai-new", ["LoRA fluffy at 0.75 is left out: its file is not here; give it to the request itself",
                          "not honoured: clip_skip: 2"]),
        ("invokeai-2", ["not honoured: perlin: 0.1"]),
        ("invokeai-dream", ["not honoured: -G: 0.8"]),
        ("novelai", ["NovelAI draws with models and noise of its own: the picture will be another"]),
        ("novelai-4", ["NovelAI draws with models and noise of its own: the picture will be another",
                       "not honoured: sm: True, characters: a girl, hat"]),
        ("swarmui", ["LoRA fluffy at 0.8 is left out: its file is not here; give it to the request itself",
                     "not honoured: refinerupscale: 1.5"]),
        ("fooocus", ["LoRA fluffy at 0.1 is left out: its file is not here; give it to the request itself",
                     "not honoured: adm_guidance: (1.5, 0.8, 0.3), refiner_switch: 0.5, sharpness: 2, styles: "
                     "['Fooocus V2']"]),
        ("comfyui", []),
        ("easydiffusion", ["LoRA fluffy at 0.5 is left out: its file is not here; give it to the request itself",
                           "LoRA red at 1.0 is left out: its file is not here; give it to the request itself",
                           "not honoured: use_face_correction: GFPGANv1.4"]),
        ("easydiffusion-shown", ["not honoured: clip_skip: True"]),
        ("drawthings", ["LoRA fluffy at 0.6 is left out: its file is not here; give it to the request itself",
                        "not honoured: mask_blur: 2.5"]),
    ],
)  # fmt: skip
def test_unsupported_settings_are_noted(tmp_path: Path, name: str, notes: list[str]) -> None:
    assert list(record_of(tmp_path, FILES[name]).notes) == notes


def replaced_values(whole: Any, value: Any) -> list[Any]:
    """A JSON object with each of its values replaced in turn, also inside of it."""
    if isinstance(whole, dict):
        return [whole | {key: changed} for key in whole for changed in (value, *replaced_values(whole[key], value))]
    if isinstance(whole, list):
        places = [(i, changed) for i, old in enumerate(whole) for changed in (value, *replaced_values(old, value))]
        return [[*whole[:i], changed, *whole[i + 1 :]] for i, changed in places]
    return []


ODD_VALUES = (
    None, True, -1, 0.5, float("nan"), float("inf"), 10**400, "", "x", "9" * 5000, [], [[]], ["9", 0], {}, {"a": [1]},
)  # fmt: skip


KEYS = {
    "invokeai": "invokeai_metadata", "invokeai-2": "sd-metadata", "novelai-4": "Comment", "swarmui": "parameters",
    "invokeai-new": "invokeai_metadata", "fooocus": "parameters", "comfyui": "prompt",
}  # fmt: skip


@pytest.mark.parametrize("name", KEYS)
def test_invalid_values_are_notes_or_errors(name: str) -> None:
    wrong = []
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in FILES[name].items()}
    for changed in (changed for value in ODD_VALUES for changed in replaced_values(FILES[name][KEYS[name]], value)):
        found = texts | {KEYS[name]: json.dumps(changed)}
        try:
            result = next(filter(None, (read(found) for read in READERS)), "")
            notes = [] if isinstance(result, str) else to_request(result)[1]
        except PictureError as error:
            notes = [str(error)]
        wrong += [note for note in notes if "\n" in note or len(note) > 1000]
    assert not wrong


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({"invokeai_metadata": "{"}, "InvokeAI's invokeai_metadata is not JSON"),
        ({"invokeai_metadata": "[1]"}, "InvokeAI's invokeai_metadata is '[1]', expected a JSON object"),
        ({"sd-metadata": "{}"}, "InvokeAI's sd-metadata: image is 'None', expected a JSON object"),
        ({"sd-metadata": "[" * 100_000}, "InvokeAI's sd-metadata is not JSON (it nests too deeply)"),
        ({**NOVEL_CHUNKS, "Comment": "no"}, "NovelAI's Comment is not JSON"),
        ({"parameters": '{"sui_image_params": '}, "SwarmUI's parameters is not JSON"),
        ({"parameters": '{"sui_image_params": 3}'}, "SwarmUI's sui_image_params is '3', expected a JSON object"),
        ({"parameters": "{", "fooocus_scheme": "fooocus"}, "Fooocus's parameters is not JSON"),
        ({"prompt": "{"}, "ComfyUI's prompt is not JSON"),
        ({"prompt": '{"1": ' * 50_000}, "ComfyUI's prompt is not JSON"),
        ({"prompt": "{}"}, "in which there is no known sampler"),
    ],
)  # fmt: skip
def test_damaged_text_names_file_and_program(tmp_path: Path, texts: dict[str, str], words: str) -> None:
    with pytest.raises(PictureError) as error:
        record_of(tmp_path, texts)
    assert str(error.value).startswith(f"picture: {tmp_path / 'a.png'}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


WORDS = sorted({
    "class_type", "inputs", "1", "2", "image", "prompt", "model", "loras", "sui_image_params", "seed", "steps",
    "caption", "v4_prompt", "text", "positive", "sampler", "sigmas", "latent_image", "sampler_name", "images",
    "resolution",
})  # fmt: skip


JSONS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([["1", 0], ["2", 0]]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=6),
    max_leaves=30,
)


TEXTS = ("invokeai_metadata", "sd-metadata", "Dream", "Comment", "parameters", "fooocus", "prompt", "workflow")


@given(data=st.dictionaries(st.sampled_from(WORDS), JSONS), which=st.sampled_from(TEXTS), software=st.text(max_size=5))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_json_is_read_or_refused(data: dict[str, Any], which: str, software: str) -> None:
    found = {which: json.dumps(data), "Software": "NovelAI" if which == "Comment" else software}
    if which == "fooocus":
        found = {"parameters": json.dumps(data), "fooocus_scheme": "fooocus"}
    with suppress(PictureError):
        result = next(filter(None, (read(found) for read in READERS)), "")
        if not isinstance(result, str):
            assert isinstance(to_request(result)[0], Request)
