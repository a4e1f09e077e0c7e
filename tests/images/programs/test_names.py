"""Every name in the lists of other programs gives a sampler or schedule, with a note where it is not the same."""

from __future__ import annotations

import pytest

from gradina.images.programs.names import NEAREST_SAMPLERS, NEAREST_SCHEDULES, sampler_and_schedule
from gradina.request import SAMPLER_NAMES, SCHEDULE_NAMES

# A1111 1.10 and Forge
A1111_SAMPLERS = (
    "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a", "Euler",
    "LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart", "LCM", "DDIM", "DDIM CFG++", "PLMS",
    "UniPC",
)  # fmt: skip
A1111_SCHEDULES = (
    "Automatic", "Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal", "Align Your Steps",
    "Simple", "Normal", "DDIM", "Beta", "Turbo",
)  # fmt: skip
HAVE = {"DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "Euler a", "Euler", "LMS", "Heun", "DDIM", "PLMS", "UniPC"}
COMFY = (
    "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "dpm_2", "dpm_2_ancestral",
    "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "dpmpp_sde_gpu",
    "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm",
    "lcm",    "ipndm", "ipndm_v", "deis", "ddim", "uni_pc", "uni_pc_bh2",
)  # fmt: skip
INVOKE = (
    "ddim", "ddpm", "deis", "dpmpp_2s", "dpmpp_2s_k", "dpmpp_2m", "dpmpp_2m_k", "dpmpp_2m_sde", "dpmpp_2m_sde_k",
    "dpmpp_3m", "dpmpp_3m_k", "dpmpp_sde", "dpmpp_sde_k", "euler", "euler_k", "euler_a", "heun", "heun_k", "kdpm_2",
    "kdpm_2_k", "kdpm_2_a", "kdpm_2_a_k", "lcm", "lms", "lms_k", "pndm", "tcd", "unipc", "unipc_k",
)  # fmt: skip
NOVELAI = (
    "k_euler", "k_euler_ancestral", "k_dpmpp_2s_ancestral", "k_dpmpp_2m", "k_dpmpp_2m_sde", "k_dpmpp_sde", "k_dpm_2",
    "k_dpm_2_ancestral", "k_dpm_fast", "k_dpm_adaptive", "k_lms", "k_heun", "ddim", "ddim_v3", "plms",
)  # fmt: skip


@pytest.mark.parametrize("name", A1111_SAMPLERS)
@pytest.mark.parametrize("end", ["", " Karras", " Exponential"])
def test_every_sampler_of_a1111(name: str, end: str) -> None:
    notes: list[str] = []
    found = sampler_and_schedule(name + end, "", notes)
    assert found["sampler"] in SAMPLER_NAMES
    assert found["schedule"] == (end.strip().lower() or found["schedule"])
    assert notes == (
        [] if name in HAVE else [f"Sampler: {name}{end} (not available; {found['sampler']} is used instead)"]
    )


@pytest.mark.parametrize("name", A1111_SCHEDULES)
def test_every_schedule_of_a1111(name: str) -> None:
    notes: list[str] = []
    found = sampler_and_schedule("Euler", name, notes)
    assert found["sampler"] == "euler"
    assert found["schedule"] in SCHEDULE_NAMES
    assert notes == ([] if name != "KL Optimal" else ["Schedule type: KL Optimal (not available; ays is used instead)"])


@pytest.mark.parametrize("name", [*COMFY, *INVOKE, *NOVELAI])
def test_every_sampler_of_others(name: str) -> None:
    notes: list[str] = []
    assert sampler_and_schedule(name, "", notes)["sampler"] in SAMPLER_NAMES
    assert len(notes) <= 1
    assert all("not available" in note for note in notes)


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
def test_names_of_requests(sampler: str, schedule: str) -> None:
    notes: list[str] = []
    assert sampler_and_schedule(sampler, schedule, notes) == {"sampler": sampler, "schedule": schedule}
    assert notes == []


@pytest.mark.parametrize(
    ("sampler", "schedule", "expected"),
    [
        ("PLMS", "", ("pndm", "leading")),
        ("uni_pc", "simple", ("unipc", "trailing")),
        ("dpmpp_2m_sde_gpu", "karras", ("dpmpp_2m_sde", "karras")),
        ("k_dpmpp_2m", "native", ("dpmpp_2m", "linspace")),
        ("k_dpmpp_2m_ka", "", ("dpmpp_2m", "karras")),
        ("euler_k", "", ("euler", "karras")),
        ("Euler A Turbo", "", ("euler_ancestral", "trailing")),
        ("DPM++ 2M AYS", "", ("dpmpp_2m", "ays")),
        ("DPM++ 2M SGMUniform", "", ("dpmpp_2m", "sgm_uniform")),
        ("euler_a discrete", "", ("euler_ancestral", "linspace")),
        ("EulerAncestralDiscreteScheduler", "", ("euler_ancestral", "linspace")),
        ("LMSDiscreteScheduler", "Karras", ("lms", "karras")),
        ("DPMSolverMultistepScheduler", "", ("dpmpp_2m", "linspace")),
        ("DPM-Solver++ 2M", "", ("dpmpp_2m", "linspace")),
        ("DPM2++ 2M", "", ("dpmpp_2m", "linspace")),
        ("UniPCMultistepScheduler", "", ("unipc", "linspace")),
        ("Euler FlowMatch", "", ("euler", "linspace")),
        ("DPM++ 2M Karras", "Automatic", ("dpmpp_2m", "karras")),
        ("DPM++ 2M", "Automatic", ("dpmpp_2m", "karras")),
        ("", "Karras", (None, "karras")),
        ("Automatic", "", (None, None)),
        ("", "", (None, None)),
    ],
)
def test_sampler_and_schedule(sampler: str, schedule: str, expected: tuple[str | None, str | None]) -> None:
    notes: list[str] = []
    assert tuple(sampler_and_schedule(sampler, schedule, notes).values()) == expected
    assert notes == []


def test_unknown_names_are_noted() -> None:
    notes: list[str] = []
    assert sampler_and_schedule("Warp\n9", "wobbly", notes) == {"sampler": None, "schedule": None}
    assert notes == [
        "Sampler: Warp 9 (unknown; the model's default is used instead)",
        "Schedule type: wobbly (unknown; the model's default is used instead)",
    ]


def test_nearest_names_are_available() -> None:
    assert {row[0] for row in NEAREST_SAMPLERS} <= set(SAMPLER_NAMES)
    assert set(NEAREST_SCHEDULES) <= set(SCHEDULE_NAMES)
