"""ComfyUI: the graph of nodes, followed upstream from the last one that saves a picture to its first sampler."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gradina.errors import PictureError
from gradina.images.programs.settings import ProgramSettings, load_object, pick

PIPES = ("pipe", "basic_pipe", "sdxl_pipe", "context", "base_ctx")  # inputs with model, prompts and latents in one
IMAGES = (  # inputs that lead from a saved picture to a sampler, and on to its first latents
    "images", "image", "samples", "pixels", "latent", "latent_image", "optional_latent", *PIPES,
)  # fmt: skip
MODELS = ("model", "unet", "model1", "lora_stack", *PIPES)
PROMPTS = (
    "populated_text", "text", "text_g", "text_l", "clip_l", "t5xxl", "prompt", "positive_prompt", "string",
)  # fmt: skip
STRINGS = (  # inputs in which a node holds the value that it outputs
    "populated_text", "text", "value", "string", "Text", "Value", "STRING", "prompt", "seed", "noise_seed", "int",
    "float", "number", "text_0",
)  # fmt: skip
SIDES = (("width", "height"), ("empty_latent_width", "empty_latent_height"))
_PASSED_ON = re.compile(r"|\*|in|source|value|(any|anything|input)(_?\d+)?")  # inputs of reroutes and switches
_PIECE = re.compile(r"(?:text|string|str|arg|prompt)_?(?:[a-z]|\d+)")  # inputs of nodes that join texts
_LORA = re.compile(r"lora_name(_\d+)?|lora(\d+)_name")
VALUES = {"steps": "steps", "seed": "seed", "cfg": "guidance_scale"}  # key: field of a Request
SAMPLER_KEYS = ("steps", "cfg", "sampler_name", "scheduler", "denoise", "add_noise")
SCHEDULES = {"SDTurbo": "Turbo", "BetaSampling": "Beta"}  # nodes whose name is not that of the schedule

# Nodes that are fully read, or do not affect the latents
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


def read(texts: Mapping[str, str]) -> ProgramSettings | None:
    """The settings that ComfyUI wrote, None if it wrote none; raises PictureError for invalid ones."""
    for key, text in texts.items():
        label = re.match(r"\s*prompt\s*:\s*(?=\{)", text, re.IGNORECASE)
        is_prompt = key == "prompt" or (key == "UserComment" and '"class_type"' in text)  # the latter by Civitai
        if label or (is_prompt and text.lstrip().startswith("{")):
            return _settings(_graph(load_object(text[label.end() if label else 0 :], "ComfyUI", "prompt")))
    if any(key == "workflow" or text.lower().startswith("workflow:") for key, text in texts.items()):
        raise PictureError("carries ComfyUI's workflow without its prompt, from which it could be read")
    return None


# The graph


def _graph(data: Mapping[str, Any]) -> Graph:
    rows = {str(key): row for key, row in data.items() if isinstance(row, dict) and isinstance(row.get("inputs"), dict)}
    return {key: Node(str(row.get("class_type"))[:80], row["inputs"]) for key, row in rows.items()}


def _link(graph: Graph, value: object) -> Node | None:
    """The node that an input is linked to, if any."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int):
        return graph.get(str(value[0]))
    return None


def _upstream(graph: Graph, node: Node | None, follow: Callable[[str], bool] = lambda key: True) -> Iterator[Node]:
    """A node and its ancestors by the inputs that are followed, breadth first, each once even in a cycle.

    Of a reroute or a switch, the input that it passes on is followed.
    """
    queue, seen = [node] if node else [], set[int]()
    for current in queue:
        if id(current) not in seen:
            seen.add(id(current))
            yield current
            linked = [_link(graph, value) for key, value in current.inputs.items() if follow(key)]
            queue += [parent for parent in linked or [_link(graph, _passed_on(current))] if parent]


def _passed_on(node: Node) -> object:
    """The input that a switch or a reroute passes on."""
    links = {key: value for key, value in node.inputs.items() if isinstance(value, list) and _PASSED_ON.fullmatch(key)}
    return links.get(f"input{node.inputs.get('select')}", next(iter(links.values()), None))


def _value(graph: Graph, value: object, *keys: str) -> object:
    """A value, or the one of the nodes that it is linked to, by one of `keys` first; None if they hold none."""
    node = _link(graph, value)
    if node is None:
        return None if isinstance(value, list) else value
    for source in _upstream(graph, node, (*keys, *STRINGS).__contains__):
        for key in (*keys, *STRINGS):
            if isinstance(found := source.inputs.get(key), str | int | float):
                return found
        if (text := _joined(graph, source)) is not None:
            return text
    return None


def _joined(graph: Graph, node: Node) -> str | None:
    """The text that a node joins from several texts or linked nodes; None if it joins none.

    Of a linked node that joins texts itself, only the text that it holds is used.
    """
    pieces = {key: value for key, value in sorted(node.inputs.items()) if _PIECE.fullmatch(key)}
    if len(pieces) < 2:
        return None
    separator = next((node.inputs[key] for key in ("delimiter", "separator") if key in node.inputs), ", ")
    values = [_text(graph, value) for value in pieces.values()]
    texts = [text for text in values if isinstance(text, str) and text]
    return str(separator).join(texts) if texts else None


def _text(graph: Graph, value: object) -> object:
    """A text, or the one that the linked nodes hold."""
    node = _link(graph, value)
    if node is None:
        return value
    values = (source.inputs.get(key) for source in _upstream(graph, node, STRINGS.__contains__) for key in STRINGS)
    return next((text for text in values if isinstance(text, str)), None)


def _piped(graph: Graph, node: Node, key: str) -> object:
    """An input of a node, or of the nodes that its pipes come from."""
    return next((one.inputs[key] for one in _upstream(graph, node, PIPES.__contains__) if key in one.inputs), None)


def _is_sampler(node: Node) -> bool:
    keys = node.inputs.keys()
    return bool(keys & {"latent_image", "samples", "latent", *PIPES}) and (
        keys >= {"sampler_name", "steps"} or keys >= {"sampler", "sigmas"}
    )


def _output(graph: Graph) -> tuple[Node, list[Node]]:
    """The last node that saves a picture, or else previews one, and its samplers, the last of them first."""
    saves = [node for node in graph.values() if re.search("save", node.kind, re.IGNORECASE)]
    previews = [node for node in graph.values() if node.kind == "PreviewImage"]
    samplers = [node for node in graph.values() if _is_sampler(node)]
    for node in (*reversed(saves), *reversed(previews), *reversed(samplers)):
        if found := [one for one in _upstream(graph, node, IMAGES.__contains__) if _is_sampler(one)]:
            return node, found
    raise PictureError("carries ComfyUI's prompt, in which there is no known sampler")


# The settings


def _settings(graph: Graph) -> ProgramSettings:
    output, samplers = _output(graph)
    first, later = samplers[-1], samplers[:-1]
    found = _sampling(graph, first)
    loaders = list(_upstream(graph, _link(graph, found["model"]) or first, MODELS.__contains__))
    names = (node.inputs.get("ckpt_name", node.inputs.get("unet_name")) for node in loaders)
    others = {node.kind for node in _upstream(graph, output) if node.kind not in READ and not _is_sampler(node)}
    sides = {name: value for name, value in _sides(graph, first).items() if value is not None}
    rest = {key: found[key] for key in ("denoise", "steps used", "add_noise")}
    rest["batch_size"] = sides.get("batch_size") if sides.get("batch_size") != 1 else None
    passes = (f"{node.kind} {_sampling(graph, node)['denoise'] or ''}".strip() for node in later)
    rest["later passes"] = ", ".join(passes)
    rest["nodes"] = ", ".join(sorted(others))
    missing = [side for side in ("positive", "negative") if found[side] is None]
    return ProgramSettings(
        prompt=found["positive"],
        negative_prompt=found["negative"],
        values=pick(found, VALUES) | pick(sides, {"width": "width", "height": "height"}),
        sampler=found["sampler_name"],
        schedule=found["scheduler"],
        model={"name": next((name for value in names if (name := _value(graph, value, "ckpt_name"))), None)},
        loras=[row for node in loaders for row in _loras(graph, node)],
        unsupported=rest,
        notes=[f"{side} prompt: made by unknown nodes, left out" for side in missing],
        size_of_picture=not later and not any("scale" in kind.lower() for kind in others),
    )


def _sampling(graph: Graph, node: Node) -> dict[str, Any]:
    """The settings of a sampler and of the nodes that it is linked to."""
    inputs = {**node.inputs}
    if noise := _link(graph, inputs.get("noise")):
        inputs["seed"] = noise.inputs.get("noise_seed")
    if guider := _link(graph, inputs.get("guider")):
        inputs |= {"cfg": 1, "positive": guider.inputs.get("conditioning"), **guider.inputs}
    if chosen := _link(graph, inputs.get("sampler")):
        inputs["sampler_name"] = chosen.inputs.get("sampler_name", chosen.kind.removeprefix("Sampler"))
    for sigmas in _upstream(graph, _link(graph, inputs.get("sigmas")), "sigmas".__eq__):
        if "steps" in sigmas.inputs:
            kind = sigmas.kind.removesuffix("Scheduler")
            inputs |= {"scheduler": SCHEDULES.get(kind, kind), **sigmas.inputs, "model": inputs.get("model")}
    found = {key: _value(graph, inputs.get(key), key) for key in SAMPLER_KEYS}
    start, end = (_value(graph, inputs.get(key)) for key in ("start_at_step", "end_at_step"))
    steps = found["steps"]
    all_steps = not start and not (isinstance(end, int) and isinstance(steps, int) and end < steps)
    negative = inputs.get("negative", "" if guider else _piped(graph, node, "negative"))
    return found | {
        "seed": _value(graph, inputs.get("seed", inputs.get("noise_seed"))),
        "model": inputs.get("model", _piped(graph, node, "model")),
        "positive": _prompt(graph, inputs.get("positive", _piped(graph, node, "positive")), "positive"),
        "negative": _prompt(graph, negative, "negative"),
        "denoise": None if found["denoise"] == 1 else found["denoise"],
        "steps used": None if all_steps else f"{start or 0} to {end}",
        "add_noise": found["add_noise"] if found["add_noise"] in ("disable", False) else None,
    }


def _prompt(graph: Graph, value: object, side: str) -> str | None:
    """The texts that a conditioning comes from; None where no node holds one."""
    if isinstance(value, str):
        return value
    keys = (side, f"text_{side}", f"{side}_prompt", f"prompt_{side}")  # of nodes that hold both prompts
    texts: dict[str, None] = {}

    def follow(key: str) -> bool:
        return key == side or key in PIPES or key.startswith("conditioning")

    for node in _upstream(graph, _link(graph, value), follow):
        if node.kind == "ConditioningZeroOut":
            return ", ".join(filter(None, texts))
        found = [node.inputs.get(side), *(_value(graph, node.inputs.get(key), *keys) for key in (*keys[1:], *PROMPTS))]
        if all(text is None for text in found):
            found = [_joined(graph, node)]
        texts |= dict.fromkeys(text for text in found if isinstance(text, str))
    return ", ".join(filter(None, texts)) if texts else None


def _sides(graph: Graph, sampler: Node) -> dict[str, object]:
    """Width, height and batch size of the latents that a sampler starts from."""
    for node in _upstream(graph, sampler, IMAGES.__contains__):
        for keys in SIDES:
            if node is not sampler and node.inputs.keys() >= {*keys}:
                inputs = zip((*SIDES[0], "batch_size"), (*keys, "batch_size"), strict=True)
                return {name: _value(graph, node.inputs.get(key), name) for name, key in inputs}
    return {}


def _loras(graph: Graph, node: Node) -> list[tuple[object, object]]:
    """The LoRAs that a node adds, with their scales for the U-Net; some nodes hold several."""
    inputs, rows = node.inputs, list[tuple[object, object]]()
    for key in filter(_LORA.fullmatch, inputs):
        n = "".join(re.findall(r"\d+", key))
        scale_keys = (
            "strength_model", "lora_model_strength", f"lora_wt_{n}", f"model_str_{n}", f"model_weight_{n}",
            f"lora{n}_model_strength", f"lora_strength_{n}",
        )  # fmt: skip
        scale = next((inputs[name] for name in scale_keys if name in inputs), 1)
        count = inputs.get("lora_count")
        if inputs.get(f"switch_{n}") != "Off" and not (n and isinstance(count, int) and int(n) > count):
            rows.append((_value(graph, inputs[key], "lora_name"), _value(graph, scale)))
    tables = [row for row in inputs.values() if isinstance(row, dict) and row.get("on") and "lora" in row]
    rows += [(row["lora"], row.get("strength")) for row in tables]
    return [row for row in rows if row[0] not in (None, "None")]
