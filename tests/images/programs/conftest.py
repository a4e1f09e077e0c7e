"""What the programs write into files."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gradina.images.metadata import Record, read_picture

KITE = {"prompt": "a red kite, 山", "negative_prompt": "blurry", "steps": 20, "seed": 77, "guidance_scale": 7.0}


SIZE = {"width": 512, "height": 768}


def write_png(path: Path, texts: Mapping[str, Any], size: tuple[int, int] = (64, 128)) -> Path:
    """A PNG with these chunks; what is no text is written as JSON."""
    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, value if isinstance(value, str) else json.dumps(value))
    Image.new("RGB", size, "red").save(path, pnginfo=info)
    return path


def record_of(folder: Path, texts: Mapping[str, Any]) -> Record:
    return read_picture(write_png(folder / "a.png", texts))


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
