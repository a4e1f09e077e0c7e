"""ComfyUI: the graph that drew the picture, walked back from the last node that saves one to its first sampler."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gradina.errors import PictureError
from gradina.images.programs.settings import Told, loaded

PIPES = ("pipe", "basic_pipe", "sdxl_pipe", "context", "base_ctx")  # in which model, prompts and latents go together
IMAGES = (  # the way from what is saved to a sampler, and on to its first latents
    "images", "image", "samples", "pixels", "latent", "latent_image", "optional_latent", *PIPES,
)  # fmt: skip
MODELS = ("model", "unet", "model1", "lora_stack", *PIPES)
PROMPTS = (
    "populated_text", "text", "text_g", "text_l", "clip_l", "t5xxl", "prompt", "positive_prompt", "string",
)  # fmt: skip
STRINGS = (  # in which a node keeps a value that others take from it
    "populated_text", "text", "value", "string", "Text", "Value", "STRING", "prompt", "seed", "noise_seed", "int",
    "float", "number", "text_0",
)  # fmt: skip
SIDES = (("width", "height"), ("empty_latent_width", "empty_latent_height"))
_THROUGH = re.compile(r"|\*|in|source|value|(any|anything|input)(_?\d+)?")  # what nodes call what they only hand on
_PIECE = re.compile(r"(?:text|string|str|arg|prompt)_?(?:[a-z]|\d+)")  # of a text that a node puts together
_LORA = re.compile(r"lora_name(_\d+)?|lora(\d+)_name")
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
    """A node and all before it, nearest first, by the inputs that are followed; each once, also in a circle.

    Where a node only hands on what comes in, or one of several things, that is followed.
    """
    line, seen = [node] if node else [], set[int]()
    for one in line:
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            linked = [_link(graph, value) for key, value in one.inputs.items() if follow(key)]
            line += [before for before in linked or [_link(graph, _handed_on(one))] if before]


def _handed_on(node: Node) -> object:
    """The input that a switch or a reroute hands on."""
    links = {key: value for key, value in node.inputs.items() if isinstance(value, list) and _THROUGH.fullmatch(key)}
    chosen = links.get(f"input{node.inputs.get('select')}")
    return chosen if chosen is not None else next(iter(links.values()), None)


def _value(graph: Graph, value: object, *keys: str) -> object:
    """A value, or what the nodes say that it comes from, as one of `keys` before all; None if they say nothing."""
    node = _link(graph, value)
    if node is None:
        return None if isinstance(value, list) else value
    for one in _back(graph, node, (*keys, *STRINGS).__contains__):
        for key in (*keys, *STRINGS):
            if isinstance(found := one.inputs.get(key), str | int | float):
                return found
        if (text := _joined(graph, one)) is not None:
            return text
    return None


def _joined(graph: Graph, node: Node) -> str | None:
    """The text that a node puts together from several, which are values or come from nodes with one; None: it is none.

    A text that is itself put together counts with what its node says, but no deeper.
    """
    pieces = {key: value for key, value in sorted(node.inputs.items()) if _PIECE.fullmatch(key)}
    if len(pieces) < 2:
        return None
    between = next((node.inputs[key] for key in ("delimiter", "separator") if key in node.inputs), ", ")
    said = [_plain(graph, value) for value in pieces.values()]
    texts = [text for text in said if isinstance(text, str) and text]
    return str(between).join(texts) if texts else None


def _plain(graph: Graph, value: object) -> object:
    """A text, or the one that the nodes keep that it comes from."""
    node = _link(graph, value)
    if node is None:
        return value
    held = (one.inputs.get(key) for one in _back(graph, node, STRINGS.__contains__) for key in STRINGS)
    return next((text for text in held if isinstance(text, str)), None)


def _held(graph: Graph, node: Node, key: str) -> object:
    """An input of a node, or of the nodes whose pipes it draws from."""
    return next((one.inputs[key] for one in _back(graph, node, PIPES.__contains__) if key in one.inputs), None)


def _is_sampler(node: Node) -> bool:
    keys = node.inputs.keys()
    return bool(keys & {"latent_image", "samples", "latent", *PIPES}) and (
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
    start = _link(graph, said["model"]) or first
    before = list(_back(graph, start, MODELS.__contains__))
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
        model={"name": next((name for value in names if (name := _value(graph, value, "ckpt_name"))), None)},
        loras=[row for node in before for row in _loras(graph, node)],
        rest=rest,
        notes=[f"{side} prompt: made by nodes that are not known here, left out" for side in unsaid],
        as_large_as_drawn=not later and not any("scale" in kind.lower() for kind in others),
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
    found = {key: _value(graph, of.get(key), key) for key in SAID}
    start, end = (_value(graph, of.get(key)) for key in ("start_at_step", "end_at_step"))
    steps = found["steps"]
    whole = not start and not (isinstance(end, int) and isinstance(steps, int) and end < steps)
    return found | {
        "seed": _value(graph, of.get("seed", of.get("noise_seed"))),
        "model": of.get("model", _held(graph, node, "model")),
        "positive": _prompt(graph, of.get("positive", _held(graph, node, "positive")), "positive"),
        "negative": _prompt(graph, of.get("negative", "" if guider else _held(graph, node, "negative")), "negative"),
        "denoise": None if found["denoise"] == 1 else found["denoise"],
        "steps used": None if whole else f"{start or 0} to {end}",
        "add_noise": found["add_noise"] if found["add_noise"] in ("disable", False) else None,
    }


def _prompt(graph: Graph, value: object, side: str) -> str | None:
    """The texts that a conditioning comes from; None where no node says one."""
    if isinstance(value, str):
        return value
    keys = (side, f"text_{side}", f"{side}_prompt", f"prompt_{side}")  # of nodes that hold both prompts
    texts: list[str] = []

    def follow(key: str) -> bool:
        return key == side or key in PIPES or key.startswith("conditioning")

    for node in _back(graph, _link(graph, value), follow):
        if node.kind == "ConditioningZeroOut":
            return ", ".join(filter(None, texts))
        said = [node.inputs.get(side), *(_value(graph, node.inputs.get(key), *keys) for key in (*keys[1:], *PROMPTS))]
        if all(text is None for text in said):
            said = [_joined(graph, node)]
        told = (text for text in said if isinstance(text, str))
        texts += [text for text in dict.fromkeys(told) if text not in texts]
    return ", ".join(filter(None, texts)) if texts else None


def _sides(graph: Graph, sampler: Node) -> dict[str, object]:
    """Width, height and number of the latents that a sampler starts from."""
    for node in _back(graph, sampler, IMAGES.__contains__):
        for theirs in SIDES:
            if node is not sampler and node.inputs.keys() >= {*theirs}:
                sides = {
                    ours: _value(graph, node.inputs[key], ours) for ours, key in zip(SIDES[0], theirs, strict=True)
                }
                return sides | {"batch_size": _value(graph, node.inputs.get("batch_size"), "batch_size")}
    return {}


def _loras(graph: Graph, node: Node) -> list[tuple[object, object]]:
    """The LoRAs that a node adds, with their scale of the U-Net; some nodes hold several."""
    of, rows = node.inputs, list[tuple[object, object]]()
    for key in filter(_LORA.fullmatch, of):
        n = "".join(re.findall(r"\d+", key))
        scales = ("strength_model", "lora_model_strength", f"lora_wt_{n}", f"model_str_{n}", f"model_weight_{n}")
        scale = next((of[name] for name in (*scales, f"lora{n}_model_strength", f"lora_strength_{n}") if name in of), 1)
        count = of.get("lora_count")
        if of.get(f"switch_{n}") != "Off" and not (n and isinstance(count, int) and int(n) > count):
            rows.append((_value(graph, of[key], "lora_name"), _value(graph, scale)))
    held = [row for row in of.values() if isinstance(row, dict) and row.get("on") and "lora" in row]
    rows += [(row["lora"], row.get("strength")) for row in held]
    return [row for row in rows if row[0] not in (None, "None")]
