"""Requests for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from gradina.request import RATES_NAMES, SAMPLER_NAMES, SCHEDULE_NAMES, Request


def requests(text: st.SearchStrategy[str]) -> st.SearchStrategy[Request]:
    """Requests of one picture with every field that a text can hold."""
    sigma = st.floats(0, 80)
    return st.builds(
        Request,
        prompt=text,
        negative_prompt=text,
        steps=st.integers(1, 1000),
        guidance_scale=st.floats(0, 1000),
        guidance_rescale=st.floats(0, 1),
        guidance_interval=st.none() | st.tuples(sigma, sigma).map(lambda ends: (min(ends), max(ends))),
        sampler=st.sampled_from(SAMPLER_NAMES),
        schedule=st.sampled_from(SCHEDULE_NAMES),
        eta=st.none() | st.floats(0, 1),
        rates=st.none() | st.sampled_from(RATES_NAMES),
        reuse=st.integers(1, 1000),
        edit=st.none() | st.tuples(st.text(min_size=1), st.floats(-2, 3)),
        concepts=st.lists(st.text(min_size=1)).map(tuple),
        loras=st.lists(st.tuples(st.text(min_size=1), st.floats(-100, 100))).map(tuple),
        seed=st.integers(0, 2**64 - 1),
        width=st.integers(1, 512).map(lambda n: 8 * n),
        height=st.integers(1, 512).map(lambda n: 8 * n),
    )


# Texts of A1111's web UI, of an old version and a newer one
OLD = """masterpiece, a (red:1.3) cat <lora:fluffy:0.8>
sitting on a [wall]
Negative prompt: ugly, blurry
deformed
Steps: 25, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, Model hash: 45dee52b, Clip skip: 2, \
ENSD: 31337"""

NEW = """a lighthouse
Steps: 30, Sampler: DPM++ 2M SDE, Schedule type: Exponential, CFG scale: 6.5, Seed: 42, Size: 1024x1024, \
Model hash: 31e35c80fc, Model: sd_xl_base_1.0, Denoising strength: 0.4, RNG: CPU, Hires upscale: 1.5, \
Hires steps: 10, Hires upscaler: "Latent (nearest, exact)", Lora hashes: "fluffy: e3b0c44298fc, other: 1c2d", \
TI hashes: "x: \\"y\\"", Version: v1.10.1"""
