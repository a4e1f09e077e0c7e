"""Fooocus: `parameters` and `fooocus_scheme` of a PNG, UserComment and MakerNote elsewhere: JSON, or A1111's text."""

from __future__ import annotations

from collections.abc import Mapping

from gradina.images.programs.settings import ProgramSettings, load_object, pick, pick_size, without

# Fooocus' key: field of a Request
VALUES = {"steps": "steps", "guidance_scale": "guidance_scale", "seed": "seed"}
READ = {
    *VALUES, "prompt", "negative_prompt", "full_prompt", "full_negative_prompt", "base_model", "base_model_hash",
    "resolution", "sampler", "scheduler", "loras", "metadata_scheme", "version", "created_by", "performance",
}  # fmt: skip
HARMLESS = (("vae", "Default (model)"), ("refiner_model", "None"), ("styles", "[]"))
SCHEMES = ("fooocus", "a1111")


def read(texts: Mapping[str, str]) -> ProgramSettings | str | None:
    """The settings or A1111 text that Fooocus wrote, None if it wrote none; raises PictureError for invalid ones."""
    text = texts.get("parameters") or texts.get("UserComment", "")
    scheme = texts.get("fooocus_scheme") or texts.get("MakerNote", "")
    is_json = text.lstrip().startswith("{")
    if not text or not (scheme in SCHEMES or (is_json and '"metadata_scheme"' in text)):
        return None
    if not is_json and scheme == "a1111":
        return text
    data = load_object(text, "Fooocus", "parameters")
    loras = data.get("loras")
    rows = [row for row in loras if isinstance(row, list) and len(row) > 1] if isinstance(loras, list) else []
    combined = [str(value).rsplit(" : ", 1) for key, value in data.items() if key.startswith("lora_combined_")]
    rows = rows or [row for row in combined if len(row) > 1]
    return ProgramSettings(
        prompt=data.get("prompt"),
        negative_prompt=data.get("negative_prompt"),
        values=pick(data, VALUES) | pick_size(data, "resolution"),
        sampler=data.get("sampler"),
        schedule=data.get("scheduler"),
        model={"name": data.get("base_model"), "hash": data.get("base_model_hash")},
        loras=[(row[0], row[1]) for row in rows],
        unsupported=without(data, READ | {key for key in data if key.startswith("lora_combined_")}, HARMLESS),
    )
