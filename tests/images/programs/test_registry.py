"""Files as other programs write them, by value, and compared with what the package sd-parsers reads in the same files.

Where sd-parsers errs, ours is the value that is right, and the row says so.
"""

from __future__ import annotations

import gzip
import html
import json
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sd_parsers import Eagerness, ParserManager

from gradina.errors import PictureError
from gradina.images.metadata import Record, read_picture
from gradina.images.programs.names import sampler_and_schedule
from gradina.images.programs.registry import read_comfyui, read_programs
from gradina.images.programs.settings import to_request
from gradina.request import Request

KITE = {"prompt": "a red kite, 山", "negative_prompt": "blurry", "steps": 20, "seed": 77, "guidance_scale": 7.0}
SIZE = {"width": 512, "height": 768}


def png(path: Path, texts: Mapping[str, Any], size: tuple[int, int] = (64, 128)) -> Path:
    """A PNG with these chunks; what is no text is written as JSON."""
    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, value if isinstance(value, str) else json.dumps(value))
    Image.new("RGB", size, "red").save(path, pnginfo=info)
    return path


def read(folder: Path, texts: Mapping[str, Any]) -> Record:
    return read_picture(png(folder / "a.png", texts))


# The programs' own shapes

INVOKE = {
    "generation_mode": "txt2img", "positive_prompt": KITE["prompt"], "negative_prompt": "blurry", "width": 512,
    "height": 768, "seed": 77, "rand_device": "cpu", "cfg_scale": 7.0, "cfg_rescale_multiplier": 0, "steps": 20,
    "scheduler": "dpmpp_2m_k", "model": {"model_name": "sd-1.5", "base_model": "sd-1", "model_type": "main"},
    "app_version": "3.1.0",
}  # fmt: skip
INVOKE_NEW = INVOKE | {
    "model": {"key": "0f", "hash": "blake3:12ab", "name": "sd-1.5", "base": "sd-1", "type": "main"},
    "loras": [{"model": {"key": "1", "name": "fluffy"}, "weight": 0.75}], "clip_skip": 2, "seamless_x": False,
}  # fmt: skip
INVOKE_2 = {
    "model": "stable diffusion", "model_weights": "sd-1.5", "model_hash": "cc6c", "app_id": "invoke-ai/InvokeAI",
    "app_version": "2.3.0",
    "image": {
        "prompt": [{"prompt": "a red kite, 山 [blurry]", "weight": 1.0}], "steps": 20, "cfg_scale": 7.0, "threshold": 0,
        "perlin": 0.1, "height": 768, "width": 512, "seed": 77, "seamless": False, "hires_fix": False,
        "type": "txt2img", "postprocessing": None, "sampler": "k_dpmpp_2m", "variations": [],
    },
}  # fmt: skip
DREAM = '"a red kite, 山 [blurry]" -s 20 -S 77 -W 512 -H 768 -C 7.0 -A k_lms -G 0.8'
NOVEL = {
    "steps": 20, "sampler": "k_dpmpp_2m", "seed": 77, "strength": 0.69, "noise": 0.667, "scale": 7.0, "uc": "blurry",
}  # fmt: skip
NOVEL_4 = NOVEL | {
    "prompt": KITE["prompt"], "width": 512, "height": 768, "noise_schedule": "karras", "cfg_rescale": 0.2, "sm": True,
    "request_type": "PromptGenerateRequest", "uncond_scale": 1.0, "signed_hash": "x=", "dynamic_thresholding": False,
    "v4_prompt": {"caption": {"base_caption": KITE["prompt"], "char_captions": [{"char_caption": "a girl, hat"}]}},
}  # fmt: skip
NOVEL_CHUNKS = {
    "Title": "AI generated image", "Description": KITE["prompt"], "Software": "NovelAI",
    "Source": "Stable Diffusion XL 7BCCAA2C",
}  # fmt: skip
SWARM = {
    "sui_image_params": {
        "prompt": KITE["prompt"], "negativeprompt": "blurry", "model": "sd-1.5", "seed": 77, "steps": 20,
        "cfgscale": 7.0, "aspectratio": "2:3", "width": 512, "height": 768, "sampler": "dpmpp_2m",
        "scheduler": "karras", "swarm_version": "0.9.5", "loras": ["fluffy"], "loraweights": ["0.8"],
        "automaticvae": True,
        "refinerupscale": 1.5,
    },
    "sui_extra_data": {"date": "2025-01-25"},
    "sui_models": [{"name": "x", "param": "vae", "hash": "0x1"}, {"name": "sd-1.5", "param": "model", "hash": "0x2"}],
}  # fmt: skip
FOOOCUS = {
    "adm_guidance": "(1.5, 0.8, 0.3)", "base_model": "sd-1.5", "base_model_hash": "12ab",
    "full_prompt": [KITE["prompt"]], "full_negative_prompt": ["blurry"], "guidance_scale": 7.0,
    "loras": [["fluffy", 0.1, "34cd"]],
    "lora_combined_1": "fluffy.safetensors : 0.1", "metadata_scheme": "fooocus", "negative_prompt": "blurry",
    "performance": "Speed", "prompt": KITE["prompt"], "refiner_model": "None", "refiner_switch": 0.5,
    "resolution": "(512, 768)", "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras", "seed": "77", "sharpness": 2,
    "steps": 20, "styles": "['Fooocus V2']", "vae": "Default (model)", "version": "Fooocus v2.5.0",
}  # fmt: skip
A1111 = (
    f"{KITE['prompt']}\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.0, "
    "Seed: 77, Size: 512x768, Model: sd-1.5, Model hash: 12ab"
)


def comfy(**changes: Any) -> dict[str, Any]:
    """The graph that everybody starts with, with other nodes at will."""
    graph = {
        "3": ("KSampler", {
            "seed": 77, "steps": 20, "cfg": 7.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0,
            "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        }),
        "4": ("CheckpointLoaderSimple", {"ckpt_name": "sd-1.5.safetensors"}),
        "5": ("EmptyLatentImage", {"width": 512, "height": 768, "batch_size": 1}),
        "6": ("CLIPTextEncode", {"text": KITE["prompt"], "clip": ["4", 1]}),
        "7": ("CLIPTextEncode", {"text": "blurry", "clip": ["4", 1]}),
        "8": ("VAEDecode", {"samples": ["3", 0], "vae": ["4", 2]}),
        "9": ("SaveImage", {"filename_prefix": "ComfyUI", "images": ["8", 0]}),
    } | {key.lstrip("n"): value for key, value in changes.items()}  # fmt: skip
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in graph.items()}


def links(graph: Mapping[str, Any]) -> dict[str, Any]:
    """The links of a graph as its `workflow` has them, for sd-parsers."""
    rows = [
        [n, value[0], value[1], key, 0, "ANY"]
        for n, (key, node) in enumerate(graph.items())
        for value in node["inputs"].values()
        if isinstance(value, list) and len(value) == 2
    ]
    return {"links": rows}


EASY = {
    "prompt": KITE["prompt"], "negative_prompt": "blurry", "seed": "77", "use_stable_diffusion_model": "sd-1.5",
    "clip_skip": "False", "use_vae_model": "", "sampler_name": "dpmpp_2m_karras", "width": "512", "height": "768",
    "num_inference_steps": "20", "guidance_scale": "7.0", "use_lora_model": "['fluffy', 'red']",
    "lora_alpha": "[0.5, 1.0]", "use_face_correction": "GFPGANv1.4", "use_upscale": "None", "tiling": "none",
}  # fmt: skip
EASY_LABELS = {
    "Prompt": KITE["prompt"], "Negative Prompt": "blurry", "Seed": "77", "Stable Diffusion model": "sd-1.5",
    "Clip Skip": "True", "Sampler": "dpmpp_2m_karras", "Width": "512", "Height": "768", "Steps": "20",
    "Guidance Scale": "7.0", "LoRA model": "None",
}  # fmt: skip
DRAW_THINGS = {
    "c": KITE["prompt"], "uc": "blurry", "seed": 77, "size": "512x768", "scale": 7, "steps": 20, "model": "sd-1.5",
    "sampler": "DPM++ 2M Karras", "strength": 1, "lora": [{"model": "fluffy", "weight": 0.6}], "mask_blur": 2.5,
}  # fmt: skip
DRAW_THINGS_XMP = (
    '<x:xmpmeta><rdf:RDF><rdf:Description><dc:description><rdf:Alt><rdf:li xml:lang="x-default">a red kite&#xA;'
    f"-blurry&#xA;{A1111.splitlines()[-1]}</rdf:li></rdf:Alt></dc:description><exif:UserComment><rdf:Alt>"
    f'<rdf:li xml:lang="x-default">{html.escape(json.dumps(DRAW_THINGS))}</rdf:li></rdf:Alt></exif:UserComment>'
    "</rdf:Description></rdf:RDF></x:xmpmeta>"
)

FILES: dict[str, dict[str, Any]] = {
    "a1111": {"parameters": A1111},
    "invokeai": {"invokeai_metadata": INVOKE},
    "invokeai-new": {"invokeai_metadata": INVOKE_NEW, "invokeai_graph": {}},
    "invokeai-2": {"sd-metadata": INVOKE_2, "Dream": DREAM},
    "invokeai-dream": {"Dream": DREAM},
    "novelai": {**NOVEL_CHUNKS, "Comment": NOVEL},
    "novelai-4": {**NOVEL_CHUNKS, "Source": "NovelAI Diffusion V4 37442FCA", "Comment": NOVEL_4},
    "swarmui": {"parameters": SWARM},
    "fooocus": {"parameters": FOOOCUS, "fooocus_scheme": "fooocus"},
    "fooocus-a1111": {"parameters": A1111.replace("Schedule type", "Scheduler"), "fooocus_scheme": "a1111"},
    "comfyui": {"prompt": comfy(), "workflow": links(comfy())},
    "easydiffusion": EASY,
    "easydiffusion-shown": EASY_LABELS,
    "drawthings": {"XML:com.adobe.xmp": DRAW_THINGS_XMP},
}
UNKNOWN_TO_SD_PARSERS = {"swarmui", "easydiffusion", "easydiffusion-shown", "drawthings"}  # which it does not know


@pytest.mark.parametrize("name", FILES)
def test_what_every_program_says(tmp_path: Path, name: str) -> None:
    record = read(tmp_path, FILES[name])
    assert record.source == name.split("-")[0]
    got = {key: getattr(record.request, key) for key in KITE}
    assert got == KITE
    size = (64, 128) if name == "novelai" else (512, 768)  # which says no size: the picture's own
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
def test_as_sd_parsers_reads_it(tmp_path: Path, name: str) -> None:
    path = png(tmp_path / "a.png", FILES[name])
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


def test_where_sd_parsers_errs(tmp_path: Path) -> None:
    """It splits at `Negative prompt:` anywhere, breaks at a second one, and tears quoted values."""
    inside = A1111.replace("山\nNegative prompt: blurry", "no Negative prompt: x")
    path = png(tmp_path / "a.png", {"parameters": inside})
    parsed = ParserManager().parse(path)
    assert parsed
    assert parsed.samplers[0].prompts[0].value == "a red kite, no"
    request = read_picture(path).request
    assert (request.prompt, request.negative_prompt) == ("a red kite, no Negative prompt: x", "")

    path = png(path, {"parameters": A1111.replace("blurry", "blurry\nNegative prompt: ugly")})
    with pytest.raises(ValueError, match="too many values to unpack"):
        ParserManager().parse(path)
    assert read_picture(path).request.negative_prompt == "blurry\nugly"

    path = png(path, {"parameters": A1111.replace("sd-1.5", 'my:model, Lora hashes: "x: a, y: b"')})
    parsed, record = ParserManager().parse(path), read_picture(path)
    assert parsed
    assert parsed.samplers[0].model
    assert parsed.samplers[0].model.name is None
    assert record.model == {"name": "my:model", "hash": "12ab"}
    assert any(note.startswith("Lora hashes: x: a, y: b (") for note in record.notes)


# What is not honoured


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
def test_what_is_lost_is_said(tmp_path: Path, name: str, notes: list[str]) -> None:
    assert list(read(tmp_path, FILES[name]).notes) == notes


def test_the_hash_of_swarmuis_model(tmp_path: Path) -> None:
    assert read(tmp_path, FILES["swarmui"]).model == {"name": "sd-1.5", "hash": "0x2"}


@pytest.mark.parametrize(
    "line",
    [
        '"a red kite" -s50 -S77 -W512 -H768 -C7.5 -Ak_lms',
        '"a red kite" -s 50 -S 77 -W 512 -H 768 -C 7.5 -A k_lms',
        "a red kite -s50 -S77 -W512 -H768 -C7.5 -Ak_lms",
        '"a red kite" --steps 50 --seed=77 --width 512 --height 768 --cfg_scale 7.5 --sampler k_lms',
    ],
)
def test_lines_of_dream(tmp_path: Path, line: str) -> None:
    record = read(tmp_path, {"Dream": f"{line} --hires_fix -G 0.8"})
    assert record.request == Request(
        prompt="a red kite", steps=50, seed=77, width=512, height=768, guidance_scale=7.5, sampler="lms",
        schedule="linspace",
    )  # fmt: skip
    assert record.notes == ("not honoured: -hires_fix: on, -G: 0.8",)


def test_weights_of_novelai_are_said(tmp_path: Path) -> None:
    record = read(tmp_path, {**NOVEL_CHUNKS, "Description": "a {red} kite", "Comment": NOVEL})
    assert record.notes[0] == "prompt: weights such as {word} or 1.2::word:: are read as plain words"


# Places


def test_fooocus_in_a_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x9286], exif[0x0131], exif[0x927C] = json.dumps(FOOOCUS), "Fooocus v2.5.0", "fooocus"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").request.prompt == KITE["prompt"]


def test_easy_diffusion_in_a_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + json.dumps(EASY).encode("utf-16-be")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg", exif=exif)
    record = read_picture(tmp_path / "a.jpg")
    assert (record.source, record.request.seed, record.request.prompt) == ("easydiffusion", 77, KITE["prompt"])


@pytest.mark.parametrize("key", ["Parameters", "Description", "Comment", "Anything"])
def test_a1111_by_other_keywords(tmp_path: Path, key: str) -> None:
    record = read(tmp_path, {"Title": "a kite", key: A1111})
    assert (record.source, record.request.seed, record.request.negative_prompt) == ("a1111", 77, "blurry")


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png"])
def test_a1111_in_the_description_of_xmp(tmp_path: Path, suffix: str) -> None:
    text = f"<dc:description><rdf:Alt><rdf:li>{html.escape(A1111)}</rdf:li></rdf:Alt></dc:description>"
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        png(path, {"XML:com.adobe.xmp": text})
    else:
        Image.new("RGB", (64, 64)).save(path, xmp=text.encode())
    record = read_picture(path)
    assert (record.request.prompt, record.request.negative_prompt, record.request.seed) == (
        KITE["prompt"], "blurry", 77,
    )  # fmt: skip


def test_swarmui_in_a_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + json.dumps(SWARM, ensure_ascii=False).encode("utf-16-le")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").request.prompt == KITE["prompt"]


def test_comfyui_in_a_comment_as_civitai_writes(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + json.dumps(comfy() | {"extra": {"x": 1}}).encode("utf-16-be")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").request.seed == 77


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_a1111_elsewhere_as_sd_parsers_reads_it(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.encode("utf-16-be")
    Image.new("RGB", (8, 8)).save(tmp_path / f"a{suffix}", exif=exif)
    parsed, request = ParserManager().parse(tmp_path / f"a{suffix}"), read_picture(tmp_path / f"a{suffix}").request
    assert parsed
    sampler = parsed.samplers[0]
    assert (request.prompt, request.negative_prompt) == (sampler.prompts[0].value, sampler.negative_prompts[0].value)
    assert (str(request.seed), str(request.steps)) == (sampler.parameters["seed"], sampler.parameters["steps"])


def test_comfyui_in_a_webp(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110], exif[0x010F] = f"prompt:{json.dumps(comfy())}", f"workflow:{json.dumps(links(comfy()))}"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=exif)
    assert read_picture(tmp_path / "a.webp").request.seed == 77


def hide(path: Path, text: str, packed: bool, size: tuple[int, int] = (64, 128)) -> Path:
    """A picture with that text in the lowest bits of its alpha channel, column by column."""
    data = gzip.compress(text.encode()) if packed else text.encode()
    whole = (b"stealth_pngcomp" if packed else b"stealth_pnginfo") + (8 * len(data)).to_bytes(4) + data
    bits = "".join(f"{byte:08b}" for byte in whole)
    image = Image.new("RGBA", size, (255, 0, 0, 254))
    pixels = image.load()
    assert pixels
    for at, bit in enumerate(bits):
        pixels[at // size[1], at % size[1]] = (255, 0, 0, 254 + int(bit))
    image.save(path, lossless=True)
    return path


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("packed", [True, False])
def test_novelai_in_the_alpha_channel(tmp_path: Path, suffix: str, packed: bool) -> None:
    text = json.dumps({**NOVEL_CHUNKS, "Comment": json.dumps(NOVEL_4 | {"v4_prompt": None})})
    path = hide(tmp_path / f"a{suffix}", text, packed)
    record = read_picture(path)
    assert (record.source, record.request.prompt, record.request.seed) == ("novelai", KITE["prompt"], 77)
    if packed and suffix == ".png":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it calls what Pillow is to lose
            parsed = ParserManager(eagerness=Eagerness.EAGER).parse(path)
        assert parsed
        assert parsed.samplers[0].prompts[0].value == KITE["prompt"]


def test_a1111_in_the_alpha_channel(tmp_path: Path) -> None:
    assert read_picture(hide(tmp_path / "a.png", A1111, True)).request.prompt == KITE["prompt"]


def test_a_damaged_text_in_the_alpha_channel(tmp_path: Path) -> None:
    path = hide(tmp_path / "a.png", A1111, True, (16, 128))
    with Image.open(path) as image:
        image.crop((0, 0, 4, 128)).save(path)  # columns are left that announce a longer text
    with pytest.raises(PictureError, match=r"a\.png hides a damaged text in its alpha channel"):
        read_picture(path)


# Precedence


def test_which_of_several_texts_counts(tmp_path: Path) -> None:
    both = {"parameters": A1111.replace("a red kite", "a blue kite"), "prompt": comfy(), "workflow": {}}
    assert read(tmp_path, both).source == "a1111"
    ours = json.dumps({"format": 1, "gradina": "0", "model": None, "request": {"prompt": "ours"}})
    assert read(tmp_path, {**FILES["invokeai"], **both, "gradina": ours}).request == Request(prompt="ours")
    assert read(tmp_path, {"parameters": "{red|blue} kite\nSteps: 4, Sampler: Euler, Seed: 3"}).request.steps == 4
    assert read(tmp_path, {"Description": A1111, "Software": "x"} | {"ImageDescription": "x"} | both).source == "a1111"
    with pytest.raises(PictureError, match="carries no request"):
        read(tmp_path, {"Comment": "Created with GIMP", "prompt": "a cat", "Description": "x", "Software": "GIMP"})
    with pytest.raises(PictureError, match="ComfyUI's workflow without its prompt"):
        read(tmp_path, {"workflow": {}})
    with pytest.raises(PictureError, match="InvokeAI's graph without its settings"):
        read(tmp_path, {"invokeai_graph": {}})
    with pytest.raises(PictureError, match="NovelAI's marks without its settings"):
        read(tmp_path, NOVEL_CHUNKS)


# Odd values


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
def test_odd_values_are_notes_or_errors(name: str) -> None:
    wrong = []
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in FILES[name].items()}
    for changed in (changed for value in ODD_VALUES for changed in replaced_values(FILES[name][KEYS[name]], value)):
        found = texts | {KEYS[name]: json.dumps(changed)}
        try:
            _, result = read_programs(found) or read_comfyui(found) or ("", "")
            notes = [] if isinstance(result, str) else to_request(result)[1]
        except PictureError as error:
            notes = [str(error)]
        wrong += [note for note in notes if "\n" in note or len(note) > 1000]
    assert not wrong


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({"invokeai_metadata": "{"}, "InvokeAI's invokeai_metadata is no JSON"),
        ({"invokeai_metadata": "[1]"}, "InvokeAI's invokeai_metadata is '[1]', expected a JSON object"),
        ({"sd-metadata": "{}"}, "InvokeAI's sd-metadata: image is 'None', expected a JSON object"),
        ({"sd-metadata": "[" * 100_000}, "InvokeAI's sd-metadata is no JSON (it nests too deeply)"),
        ({**NOVEL_CHUNKS, "Comment": "no"}, "NovelAI's Comment is no JSON"),
        ({"parameters": '{"sui_image_params": '}, "SwarmUI's parameters is no JSON"),
        ({"parameters": '{"sui_image_params": 3}'}, "SwarmUI's sui_image_params is '3', expected a JSON object"),
        ({"parameters": "{", "fooocus_scheme": "fooocus"}, "Fooocus's parameters is no JSON"),
        ({"prompt": "{"}, "ComfyUI's prompt is no JSON"),
        ({"prompt": '{"1": ' * 50_000}, "ComfyUI's prompt is no JSON"),
        ({"prompt": "{}"}, "in which there is no sampler that is known here"),
    ],
)  # fmt: skip
def test_damaged_texts_name_the_file_and_the_program(tmp_path: Path, texts: dict[str, str], words: str) -> None:
    with pytest.raises(PictureError) as error:
        read(tmp_path, texts)
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
        result = read_programs(found) or read_comfyui(found)
        if result and not isinstance(result[1], str):
            assert isinstance(to_request(result[1])[0], Request)
