"""ComfyUI's graphs: nodes are found wherever they stand, and unknown ones are noted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gradina.errors import PictureError
from gradina.images.metadata import read_picture
from gradina.images.programs.comfyui import read
from gradina.images.programs.settings import ProgramSettings, model_of, to_request
from gradina.request import Request

from .conftest import comfy, links, write_png

Nodes = dict[str, tuple[str, dict[str, Any]]]


SAMPLER = {
    "seed": 77, "steps": 20, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
    "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
}  # fmt: skip


BASE: Nodes = {
    "3": ("KSampler", SAMPLER),
    "4": ("CheckpointLoaderSimple", {"ckpt_name": "sd-1.5.safetensors"}),
    "5": ("EmptyLatentImage", {"width": 512, "height": 768, "batch_size": 1}),
    "6": ("CLIPTextEncode", {"text": "a red kite", "clip": ["4", 1]}),
    "7": ("CLIPTextEncode", {"text": "blurry", "clip": ["4", 1]}),
    "8": ("VAEDecode", {"samples": ["3", 0], "vae": ["4", 2]}),
    "9": ("SaveImage", {"images": ["8", 0]}),
}


KITE = Request(
    prompt="a red kite", negative_prompt="blurry", steps=20, seed=77, guidance_scale=7.0, sampler="euler",
    schedule="linspace", width=512, height=768,
)  # fmt: skip


def read_graph(nodes: Nodes) -> ProgramSettings:
    found = read({"prompt": json.dumps(as_graph(nodes))})
    assert found
    return found


def as_graph(nodes: Nodes) -> dict[str, Any]:
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def changed(**fields: Any) -> dict[str, Any]:
    return SAMPLER | fields


CUSTOM = {
    "noise": ["20", 0], "guider": ["21", 0], "sampler": ["22", 0], "sigmas": ["23", 0], "latent_image": ["5", 0],
}  # fmt: skip


PARTS: Nodes = {
    "3": ("SamplerCustomAdvanced", CUSTOM),
    "20": ("RandomNoise", {"noise_seed": 77}),
    "21": ("CFGGuider", {"cfg": 7.0, "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0]}),
    "22": ("KSamplerSelect", {"sampler_name": "euler"}),
    "23": ("BasicScheduler", {"scheduler": "normal", "steps": 20, "denoise": 1.0, "model": ["4", 0]}),
}


FIRST = changed(latent_image=["12", 0], denoise=0.5, seed=1, steps=9, positive=["7", 0])  # a second pass


PIPED = {key: SAMPLER[key] for key in ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise")}


LOADER = {
    "ckpt_name": "sd-1.5.safetensors", "positive": "a red kite", "negative": "blurry", "empty_latent_width": 512,
    "empty_latent_height": 768, "batch_size": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "nodes",
    [
        {},
        {"9": ("PreviewImage", {"images": ["8", 0]})},
        {"9": ("Image Save", {"images": ["8", 0]})},
        {"9": ("Nothing", {})},
        PARTS,
        {"3": ("SamplerCustom", {"add_noise": True, "noise_seed": 77, "cfg": 7.0, "positive": ["6", 0],
                                  "model": ["4", 0],
                                  "negative": ["7", 0], "sampler": ["22", 0], "sigmas": ["23", 0],
                                  "latent_image": ["5", 0]}), "22": PARTS["22"], "23": PARTS["23"]},
        {"3": ("KSamplerAdvanced", {k: v for k, v in SAMPLER.items() if k != "seed"} | {
            "add_noise": "enable", "noise_seed": 77, "start_at_step": 0, "end_at_step": 10000,
            "return_with_leftover_noise": "disable"})},
        # values that other nodes say
        {"3": ("KSampler", changed(seed=["30", 0], steps=["31", 0], cfg=["32", 0])),
          "30": ("Seed (rgthree)", {"seed": 77}), "31": ("PrimitiveInt", {"value": 20}),
          "32": ("Reroute", {"value": ["33", 0]}), "33": ("PrimitiveFloat", {"value": 7.0})},
        {"6": ("CLIPTextEncode", {"text": ["30", 0], "clip": ["4", 1]}),
         "30": ("String", {"string": "a red kite"})},
        {"6": ("CLIPTextEncodeSDXL", {"text_g": "a red kite", "text_l": "a red kite", "width": 8})},
        # conditionings between
        {"3": ("KSampler", changed(positive=["30", 0], negative=["30", 1])),
          "30": ("ControlNetApplyAdvanced", {"positive": ["6", 0], "negative": ["7", 0], "image": ["31", 0]}),
          "31": ("LoadImage", {"image": "a.png"})},
        # what only hands on
        {"3": ("KSampler", changed(model=["30", 0], positive=["31", 0], latent_image=["32", 0])),
         "30": ("Reroute (rgthree)", {"": ["4", 0]}), "31": ("Reroute", {"": ["6", 0]}),
         "32": ("ReroutePrimitive|pysssss", {"value": ["5", 0]})},
        {"3": ("KSampler", changed(positive=["30", 0], latent_image=["31", 0])),
         "30": ("ImpactSwitch", {"select": 2, "input1": ["7", 0], "input2": ["6", 0]}),
         "31": ("Any Switch (rgthree)", {"any_01": ["5", 0]})},
        # pipes and contexts
        {"3": ("KSampler", changed(model=["30", 1], positive=["30", 4], negative=["30", 5], latent_image=["30", 6])),
         "30": ("Context Big (rgthree)", {"base_ctx": ["31", 0]}),
         "31": ("Context (rgthree)", {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0],
                                      "latent": ["5", 0]})},
        {"3": ("ImpactKSamplerBasicPipe", {k: v for k, v in SAMPLER.items()
                                           if k not in ("model", "positive", "negative")} | {"basic_pipe": ["30", 0]}),
         "30": ("ToBasicPipe", {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0]})},
        {"3": ("ttN pipeKSampler", {**PIPED, "pipe": ["30", 0]}), "30": ("ttN pipeLoader", LOADER)},
        {"3": ("easy kSampler", {"pipe": ["30", 0]}), "30": ("easy preSampling", {**PIPED, "pipe": ["31", 0]}),
         "31": ("easy fullLoader", LOADER)},
        {"3": ("KSampler (Efficient)", changed(model=["30", 0], positive=["30", 1], negative=["30", 2],
                                               latent_image=["30", 3])), "30": ("Efficient Loader", LOADER)},
        # texts from nodes of other packages
        {"6": ("CLIPTextEncode", {"text": ["30", 0]}), "7": ("CLIPTextEncode", {"text": ["30", 1]}),
         "30": ("SDXLPromptStyler", {"text_positive": "a red kite", "text_negative": "blurry", "style": "base"})},
        {"6": ("CLIPTextEncode", {"text": ["30", 0]}), "31": ("Text Multiline", {"text": "red"}),
         "30": ("StringConcatenate", {"string_a": "a", "string_b": ["31", 0], "string_c": "kite", "delimiter": " "})},
        {"6": ("CLIPTextEncode", {"text": ["30", 0]}),
         "30": ("ImpactWildcardProcessor", {"wildcard_text": "a {red|blue} kite", "populated_text": "a red kite"})},
        {"6": ("ImpactWildcardEncode", {"wildcard_text": "a {red|blue} kite", "populated_text": "a red kite"})},
        {"6": ("CLIPTextEncode", {"text": ["30", 0]}),
         "30": ("ShowText|pysssss", {"text": ["31", 0], "text_0": "a red kite"}), "31": ("SomeModel", {"seed": 1})},
        {"3": ("KSampler", changed(sampler_name=["30", 0], scheduler=["31", 0])),
         "30": ("Sampler Selector", {"sampler_name": "euler"}), "31": ("Scheduler", {"scheduler": "normal"})},
        # a second pass: the first is drawn
        {"8": ("VAEDecode", {"samples": ["11", 0]}), "11": ("KSampler", FIRST),
          "12": ("LatentUpscale", {"samples": ["3", 0], "width": 1024, "height": 1024})},
        # a circle
        {"5": ("EmptyLatentImage", {"width": 512, "height": 768, "batch_size": 1, "samples": ["3", 0]}),
          "6": ("CLIPTextEncode", {"text": "a red kite", "conditioning": ["6", 0], "clip": ["6", 0]})},
    ],
)  # fmt: skip
def test_equivalent_graphs(nodes: Nodes) -> None:
    found = read_graph(BASE | nodes)
    assert to_request(found)[0] == KITE
    assert model_of(found) == {"name": "sd-1.5.safetensors"}


@pytest.mark.parametrize(
    ("nodes", "notes"),
    [
        ({}, []),
        (PARTS, []),
        ({"3": ("KSampler", changed(denoise=0.6))}, ["not honoured: denoise: 0.6"]),
        ({"5": ("EmptyLatentImage", {"width": 512, "height": 768, "batch_size": 4})}, ["not honoured: batch_size: 4"]),
        ({"5": ("EmptyLatentImage", {"width": 516, "height": 768})}, ["width: 516 (cut to a multiple of 8)"]),
        ({"5": ("VAEEncode", {"pixels": ["30", 0]}), "30": ("LoadImage", {"image": "a.png"})},
         ["not honoured: nodes: LoadImage, VAEEncode"]),
        ({"3": ("KSampler", changed(model=["30", 0])),
          "30": ("LoraLoader", {"lora_name": "fluffy.safetensors", "strength_model": 0.8, "model": ["31", 0]}),
          "31": ("LoraLoader", {"lora_name": "None", "strength_model": 0.8, "model": ["32", 0]}),
          "32": ("Power Lora Loader (rgthree)", {"lora_1": {"on": True, "lora": "b", "strength": 1},
                                                 "lora_2": {"on": False, "lora": "c"}, "model": ["4", 0]})},
         ["LoRA fluffy.safetensors at 0.8 is left out: its file is not here; give it to the request itself",
          "LoRA b at 1 is left out: its file is not here; give it to the request itself",
          "not honoured: nodes: Power Lora Loader (rgthree)"]),
        ({"3": ("KSampler", changed(model=["30", 0])), "30": ("CR Apply LoRA Stack", {"lora_stack": ["31", 0],
                                                                                      "model": ["4", 0]}),
          "31": ("CR LoRA Stack", {"lora_name_1": "a", "model_weight_1": 0.5, "switch_1": "On",
                                   "lora_name_2": "b", "model_weight_2": 1, "switch_2": "Off"})},
         ["LoRA a at 0.5 is left out: its file is not here; give it to the request itself",
          "not honoured: nodes: CR Apply LoRA Stack, CR LoRA Stack"]),
        ({"3": ("KSampler", changed(model=["30", 0])),
          "30": ("Efficient Loader", LOADER | {"lora_name": "a", "lora_model_strength": 0.7, "lora_stack": ["31", 0]}),
          "31": ("LoRA Stacker", {"lora_count": 1, "lora_name_1": "b", "lora_wt_1": 0.5, "lora_name_2": "c",
                                  "lora_wt_2": 1})},
         ["LoRA a at 0.7 is left out: its file is not here; give it to the request itself",
          "LoRA b at 0.5 is left out: its file is not here; give it to the request itself",
          "not honoured: nodes: Efficient Loader, LoRA Stacker"]),
        ({"6": ("CLIPTextEncode", {"text": ""})}, []),
        ({"8": ("VAEDecode", {"samples": ["11", 0]}), "11": ("KSampler", FIRST),
          "12": ("LatentUpscale", {"samples": ["3", 0]})},
         ["not honoured: later passes: KSampler 0.5, nodes: LatentUpscale"]),
        ({"3": ("KSamplerAdvanced", changed(start_at_step=4, end_at_step=10, add_noise="disable"))},
         ["not honoured: steps used: 4 to 10, add_noise: disable"]),
        ({"3": ("KSampler", changed(sampler_name="dpm_2", scheduler="kl_optimal"))},
         ["Sampler: dpm_2 (not available; heun is used instead)",
          "Schedule type: kl_optimal (not available; ays is used instead)"]),
        ({"6": ("Mystery", {"clip": ["4", 1]})},
         ["positive prompt: made by unknown nodes, left out", "not honoured: nodes: Mystery"]),
        ({"6": ("ConditioningCombine", {"conditioning_1": ["30", 0], "conditioning_2": ["31", 0]}),
          "30": ("CLIPTextEncode", {"text": "a"}), "31": ("CLIPTextEncode", {"text": "b"})},
         ["not honoured: nodes: ConditioningCombine"]),
        ({"3": ("KSampler", changed(seed=-1, cfg="x", steps=[]))},
         ["cfg: x (cannot be used, left open)", "seed: -1 (cannot be used, left open)"]),
    ],
)  # fmt: skip
def test_unsupported_settings_are_noted(nodes: Nodes, notes: list[str]) -> None:
    assert sorted(to_request(read_graph(BASE | nodes))[1]) == sorted(notes)


def test_last_saved_picture_counts() -> None:
    nodes: Nodes = {"1": ("SaveImage", {"images": ["2", 0]}), "2": ("VAEDecode", {"samples": ["13", 0]})}
    first: Nodes = {"13": ("KSampler", changed(seed=1, latent_image=["5", 0]))}
    assert to_request(read_graph(nodes | first | BASE))[0] == KITE
    assert to_request(read_graph(BASE | nodes | first))[0].seed == 1


def test_other_values() -> None:
    zeros = read_graph(BASE | {"7": ("ConditioningZeroOut", {"conditioning": ["6", 0]})})
    assert (zeros.prompt, zeros.negative_prompt) == ("a red kite", "")
    guided = read_graph(BASE | PARTS | {"21": ("BasicGuider", {"conditioning": ["6", 0], "model": ["4", 0]})})
    assert (guided.prompt, guided.negative_prompt, guided.values["guidance_scale"][1]) == ("a red kite", "", 1)
    nodes: Nodes = {"22": ("SamplerDPMPP_2M_SDE", {"eta": 1}), "23": ("KarrasScheduler", {"steps": 9, "rho": 7})}
    request = to_request(read_graph(BASE | PARTS | nodes))[0]
    assert (request.sampler, request.schedule, request.steps) == ("dpmpp_2m_sde", "karras", 9)
    texts: Nodes = {"30": ("CLIPTextEncode", {"text": "a"}), "31": ("CLIPTextEncode", {"text": "b"})}
    concat: Nodes = {"6": ("ConditioningConcat", {"conditioning_to": ["30", 0], "conditioning_from": ["31", 0]})}
    both = read_graph(BASE | texts | concat)
    assert both.prompt == "a, b"


def test_size_of_the_picture_is_the_default(tmp_path: Path) -> None:
    start: Nodes = {"5": ("VAEEncode", {"pixels": ["30", 0]}), "30": ("LoadImage", {"image": "a.png"})}
    assert read_graph(BASE | start).size_of_picture
    for size, expected in (((96, 40), (96, 40)), ((100, 44), (96, 40))):  # multiples of 8
        write_png(tmp_path / "a.png", {"prompt": as_graph(BASE | start)}, size)
        request = read_picture(tmp_path / "a.png").request
        assert (request.width, request.height) == expected
    scaled: Nodes = {"9": ("SaveImage", {"images": ["31", 0]}), "31": ("ImageScaleBy", {"image": ["8", 0]})}
    assert not read_graph(BASE | start | scaled).size_of_picture


def test_long_chains() -> None:
    chain: Nodes = {str(n): ("CLIPTextEncode", {"conditioning": [str(n + 1), 0]}) for n in range(100, 9000)}
    chain["9000"] = ("CLIPTextEncode", {"text": "a red kite"})
    assert read_graph(BASE | chain | {"3": ("KSampler", changed(positive=["100", 0]))}).prompt == "a red kite"


@pytest.mark.parametrize(
    "graph", [{}, {"1": 3}, {"1": {"class_type": "KSampler", "inputs": []}}, {"1": {"inputs": {}}}]
)
def test_graphs_without_a_sampler(graph: dict[str, Any]) -> None:
    with pytest.raises(PictureError, match="in which there is no known sampler"):
        read({"prompt": json.dumps(graph)})
    assert read({"prompt": "a cat"}) is None


def test_civitai_comment(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + json.dumps(comfy() | {"extra": {"x": 1}}).encode("utf-16-be")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").request.seed == 77


def test_webp(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110], exif[0x010F] = f"prompt:{json.dumps(comfy())}", f"workflow:{json.dumps(links(comfy()))}"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=exif)
    assert read_picture(tmp_path / "a.webp").request.seed == 77
