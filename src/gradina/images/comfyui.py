"""ComfyUI: the graph that drew the picture, walked back from the last node that saves one to its first sampler."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gradina.errors import PictureError
from gradina.images.told import Told, loaded

IMAGES = ("images", "image", "samples", "pixels", "latent", "latent_image")  # the way from what is saved to a sampler
MODELS = ("model", "unet")
PROMPTS = ("text", "text_g", "text_l", "clip_l", "t5xxl", "prompt", "positive_prompt", "string")
STRINGS = (  # in which a node keeps a value that others take from it
    "text", "value", "string", "Text", "Value", "STRING", "prompt", "seed", "noise_seed", "int", "float", "number",
)  # fmt: skip
VALUES = {"steps": "steps", "seed": "seed", "guidance_scale": "cfg"}  # ours, theirs
SAID = ("steps", "cfg", "sampler_name", "scheduler", "denoise", "add_noise")
SCHEDULES = {"SDTurbo": "Turbo", "BetaSampling": "Beta"}  # nodes that are called otherwise than their law

# Nodes whose every effect is read, or that have none on the latents
READ = {
    "SaveImage", "PreviewImage", "VAEDecode", "VAEDecodeTiled", "KSampler", "KSamplerAdvanced", "SamplerCustom",
    "SamplerCustomAdvanced", "CLIPTextEncode", "CheckpointLoaderSimple", "EmptyLatentImage", "RandomNoise", "CFGGuider",
    "BasicGuider", "KSamplerSelect", "BasicScheduler", "LoraLoader", "LoraLoaderModelOnly", "VAELoader", "UNETLoader",
    "CLIPLoader", "DualCLIPLoader", "ConditioningZeroOut", "EmptySD3LatentImage", "Reroute", "PrimitiveString",
    "PrimitiveStringMultiline", "PrimitiveInt", "PrimitiveFloat", "PrimitiveNode", "KarrasScheduler",
    "ExponentialScheduler", "SDTurboScheduler", "AlignYourStepsScheduler",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a graph: its class, and its inputs, each a value or a link."""

    kind: str
    inputs: Mapping[str, Any]


Graph = Mapping[str, Node]


def read(found: Mapping[str, str]) -> Told | None:
    """What ComfyUI wrote; None if it wrote nothing. Raises PictureError for what is damaged."""
    for key, text in found.items():
        begins = re.match(r"\s*prompt\s*:\s*(?=\{)", text, re.IGNORECASE)
        whole = key == "prompt" or (key == "UserComment" and '"class_type"' in text)  # the latter is Civitai's
        if begins or (whole and text.lstrip().startswith("{")):
            return _told(_graph(loaded(text[begins.end() if begins else 0 :], "ComfyUI", "prompt")))
    if any(key == "workflow" or text.lower().startswith("workflow:") for key, text in found.items()):
        raise PictureError("carries ComfyUI's workflow without its prompt, from which it could be read")
    return None


# The graph


def _graph(data: Mapping[str, Any]) -> Graph:
    rows = {str(key): row for key, row in data.items() if isinstance(row, dict) and isinstance(row.get("inputs"), dict)}
    return {key: Node(str(row.get("class_type"))[:80], row["inputs"]) for key, row in rows.items()}


def _link(graph: Graph, value: object) -> Node | None:
    """The node that an input is linked to, if it is."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int):
        return graph.get(str(value[0]))
    return None


def _back(graph: Graph, node: Node | None, follow: Callable[[str], bool] = lambda key: True) -> Iterator[Node]:
    """A node and all before it, nearest first, by the inputs that are followed; each once, also in a circle."""
    line, seen = [node] if node else [], set[int]()
    for one in line:
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            linked = (_link(graph, value) for key, value in one.inputs.items() if follow(key))
            line += [before for before in linked if before]


def _value(graph: Graph, value: object) -> object:
    """A value, or what the nodes say that it comes from; None if they say nothing."""
    node = _link(graph, value)
    if node is None:
        return None if isinstance(value, list) else value
    for one in _back(graph, node, STRINGS.__contains__):
        for key in STRINGS:
            if isinstance(found := one.inputs.get(key), str | int | float):
                return found
    return None


def _is_sampler(node: Node) -> bool:
    keys = node.inputs.keys()
    return bool(keys & {"latent_image", "samples", "latent"}) and (
        keys >= {"sampler_name", "steps"} or keys >= {"sampler", "sigmas"}
    )


def _drawn(graph: Graph) -> tuple[Node, list[Node]]:
    """The last node that saves a picture, or else shows one, and its samplers, the last of them first."""
    saves = [node for node in graph.values() if re.search("save", node.kind, re.IGNORECASE)]
    shows = [node for node in graph.values() if node.kind == "PreviewImage"]
    loose = [node for node in graph.values() if _is_sampler(node)]
    for node in (*reversed(saves), *reversed(shows), *reversed(loose)):
        if found := [one for one in _back(graph, node, IMAGES.__contains__) if _is_sampler(one)]:
            return node, found
    raise PictureError("carries ComfyUI's prompt, in which there is no sampler that is known here")


# What it says


def _told(graph: Graph) -> Told:
    saved, samplers = _drawn(graph)
    first, later = samplers[-1], samplers[:-1]
    said = _said(graph, first)
    before = list(_back(graph, _link(graph, said["model"]), MODELS.__contains__))
    names = (node.inputs.get("ckpt_name", node.inputs.get("unet_name")) for node in before)
    others = {node.kind for node in _back(graph, saved) if node.kind not in READ and not _is_sampler(node)}
    sides = _sides(graph, first)
    rest = {key: said[key] for key in ("denoise", "steps used", "add_noise")}
    rest["batch_size"] = sides.get("batch_size") if sides.get("batch_size") != 1 else None
    rest["later passes"] = ", ".join(f"{node.kind} {_said(graph, node)['denoise'] or ''}".strip() for node in later)
    rest["nodes"] = ", ".join(sorted(others))
    unsaid = [side for side in ("positive", "negative") if said[side] is None]
    return Told(
        prompt=said["positive"],
        negative_prompt=said["negative"],
        values={
            **{ours: (theirs, said[theirs]) for ours, theirs in VALUES.items()},
            **{side: (side, sides.get(side)) for side in ("width", "height")},
        },
        sampler=said["sampler_name"],
        schedule=said["scheduler"],
        model={"name": next((name for value in names if (name := _value(graph, value))), None)},
        loras=[row for node in before for row in _loras(graph, node)],
        rest=rest,
        notes=[f"{side} prompt: made by nodes that are not known here, left out" for side in unsaid],
    )


def _said(graph: Graph, node: Node) -> dict[str, Any]:
    """What a sampler says, and the nodes that say it in its stead."""
    of = {**node.inputs}
    if noise := _link(graph, of.get("noise")):
        of["seed"] = noise.inputs.get("noise_seed")
    if guider := _link(graph, of.get("guider")):
        of = {**of, "cfg": 1, "positive": guider.inputs.get("conditioning"), **guider.inputs}
    if chosen := _link(graph, of.get("sampler")):
        of["sampler_name"] = chosen.inputs.get("sampler_name", chosen.kind.removeprefix("Sampler"))
    for sigmas in _back(graph, _link(graph, of.get("sigmas")), "sigmas".__eq__):
        if "steps" in sigmas.inputs:
            kind = sigmas.kind.removesuffix("Scheduler")
            of = {**of, "scheduler": SCHEDULES.get(kind, kind), **sigmas.inputs, "model": of.get("model")}
    found = {key: _value(graph, of.get(key)) for key in SAID}
    start, end = (_value(graph, of.get(key)) for key in ("start_at_step", "end_at_step"))
    steps = found["steps"]
    whole = not start and not (isinstance(end, int) and isinstance(steps, int) and end < steps)
    return found | {
        "seed": _value(graph, of.get("seed", of.get("noise_seed"))),
        "model": of.get("model"),
        "positive": _prompt(graph, of.get("positive"), "positive"),
        "negative": _prompt(graph, of["negative"], "negative") if "negative" in of else "",
        "denoise": None if found["denoise"] == 1 else found["denoise"],
        "steps used": None if whole else f"{start or 0} to {end}",
        "add_noise": found["add_noise"] if found["add_noise"] in ("disable", False) else None,
    }


def _prompt(graph: Graph, value: object, side: str) -> str | None:
    """The texts that a conditioning comes from; None where no node says one."""
    texts: list[str] = []

    def follow(key: str) -> bool:
        return key == side or key.startswith("conditioning")

    for node in _back(graph, _link(graph, value), follow):
        if node.kind == "ConditioningZeroOut":
            return ", ".join(texts)
        said = [_value(graph, node.inputs.get(key)) for key in PROMPTS]
        said += [node.inputs.get(side)]  # a loader that holds both prompts
        for text in said:
            texts += [text] if isinstance(text, str) and text and text not in texts else []
    return ", ".join(texts) if texts else None


def _sides(graph: Graph, sampler: Node) -> dict[str, object]:
    """Width, height and number of the latents that a sampler starts from."""
    for node in _back(graph, sampler, IMAGES.__contains__):
        if node is not sampler and node.inputs.keys() >= {"width", "height"}:
            return {key: _value(graph, node.inputs.get(key)) for key in ("width", "height", "batch_size")}
    return {}


def _loras(graph: Graph, node: Node) -> list[tuple[object, object]]:
    """The LoRAs that a node adds, with their scale of the U-Net; some nodes hold several."""
    of = node.inputs
    rows = [(_value(graph, of["lora_name"]), _value(graph, of.get("strength_model")))] if "lora_name" in of else []
    held = [row for row in of.values() if isinstance(row, dict) and row.get("on") and "lora" in row]
    rows += [(row["lora"], row.get("strength")) for row in held]
    return [row for row in rows if row[0] not in (None, "None")]
