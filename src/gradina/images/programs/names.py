"""Names of samplers and schedules in other programs: the one of that name here, or the nearest, with a note."""

from __future__ import annotations

import re
from typing import Any

from gradina.request import SCHEDULE_NAMES

# A1111's name          name here          schedule: not named  "Automatic"
SAMPLERS = (
    ("DDPM",            "ddpm",            "leading",           "leading"),
    ("DDIM",            "ddim",            "leading",           "leading"),
    ("PLMS",            "pndm",            "leading",           "leading"),
    ("LMS",             "lms",             "linspace",          "linspace"),
    ("Euler",           "euler",           "linspace",          "linspace"),
    ("Euler a",         "euler_ancestral", "linspace",          "linspace"),
    ("Heun",            "heun",            "linspace",          "linspace"),
    ("DPM++ 2M",        "dpmpp_2m",        "linspace",          "karras"),
    ("DPM++ 2M SDE",    "dpmpp_2m_sde",    "linspace",          "exponential"),
    ("DPM++ SDE",       "dpmpp_sde",       "linspace",          "karras"),
    ("UniPC",           "unipc",           "linspace",          "linspace"),
    ("SGD",             "sgd",             "linspace",          "linspace"),  # from here on, samplers of gradina alone
    ("Momentum",        "momentum",        "linspace",          "linspace"),
    ("Nesterov",        "nesterov",        "linspace",          "linspace"),
    ("Adam",            "adam",            "linspace",          "linspace"),
)  # fmt: skip

# Not available here    nearest            schedule: not named  "Automatic"
NEAREST_SAMPLERS = (
    ("DPM2",            "heun",            "linspace",          "karras"),
    ("DPM2 a",          "euler_ancestral", "linspace",          "karras"),
    ("DPM++ 2S",        "dpmpp_2m",        "linspace",          "karras"),
    ("DPM++ 2S a",      "dpmpp_sde",       "linspace",          "karras"),
    ("DPM++ 2M SDE Heun", "dpmpp_2m_sde",  "linspace",          "exponential"),
    ("DPM++ 2Mv2",      "dpmpp_2m",        "linspace",          "karras"),
    ("DPM++ 3M",        "dpmpp_2m",        "linspace",          "karras"),
    ("DPM++ 3M SDE",    "dpmpp_2m_sde",    "linspace",          "exponential"),
    ("DPM fast",        "dpmpp_2m",        "linspace",          "linspace"),
    ("DPM adaptive",    "dpmpp_2m",        "linspace",          "linspace"),
    ("Restart",         "heun",            "karras",            "karras"),
    ("LCM",             "euler_ancestral", "linspace",          "linspace"),
    ("TCD",             "euler_ancestral", "linspace",          "linspace"),
    ("DEIS",            "dpmpp_2m",        "linspace",          "linspace"),
    ("IPNDM",           "pndm",            "linspace",          "linspace"),
    ("IPNDM V",         "pndm",            "linspace",          "linspace"),
    ("HeunPP2",         "heun",            "linspace",          "linspace"),
    ("SA Solver",       "dpmpp_2m_sde",    "linspace",          "linspace"),
    ("RES Multistep",   "dpmpp_2m",        "linspace",          "linspace"),
    ("ER SDE",          "dpmpp_2m_sde",    "linspace",          "linspace"),
    ("UniPC bh2",       "unipc",           "linspace",          "linspace"),
)  # fmt: skip

# Name there              here; the first row of a schedule is the one that is written
SCHEDULES = (
    ("Karras",            "karras"),
    ("Exponential",       "exponential"),
    ("SGM Uniform",       "sgm_uniform"),
    ("Align Your Steps",  "ays"),
    ("Beta",              "beta"),
    ("Uniform",           "linspace"),
    ("Normal",            "linspace"),
    ("DDIM",              "leading"),
    ("Simple",            "trailing"),
    ("DDIM Uniform",      "leading"),
    ("Turbo",             "trailing"),
    ("Polyexponential",   "exponential"),  # the same at rho 1, the default
    ("Discrete",          "linspace"),
    ("Native",            "linspace"),
)  # fmt: skip

# Not available here        nearest
NEAREST_SCHEDULES = (
    ("KL Optimal",            "ays"),
    ("Align Your Steps GITS", "ays"),
    ("Align Your Steps 11",   "ays"),
    ("Align Your Steps 32",   "ays"),
    ("GITS",                  "ays"),
    ("Karras Exponential",    "karras"),
    ("Karras Dynamic",        "karras"),
    ("EDM Playground v2.5",   "karras"),
    ("Linear Quadratic",      "linspace"),
    ("Smoothstep",            "linspace"),
    ("Beta57",                "beta"),
    ("LCM",                   "trailing"),
    ("TCD",                   "trailing"),
)  # fmt: skip

ALIASES = {  # by `_key`
    "lmsd": "lms", "dpmsde": "dpmppsde", "dpmad": "dpmadaptive", "ddimv3": "ddim", "unipcmultistep": "unipc",
    "dpmsolvermultistep": "dpmpp2m", "dpmsolverpp": "dpmpp2m", "dpmsolverpp2m": "dpmpp2m", "dpm2pp2m": "dpmpp2m",
    "dpmsolversinglestep": "dpmpp2s", "dpmsolversde": "dpmppsde", "deismultistep": "deis",
}  # fmt: skip
AUTOMATIC = ("", "default", "automatic", "none", "auto")  # the default of the program


def _key(name: str) -> str:
    """Letters and digits of a name in one spelling, so that `DPM++ 2S a` equals `dpmpp_2s_ancestral`."""
    name = name.lower().replace("+", "p").removeprefix("k_").removeprefix("sample_")
    key = re.sub(r"[^a-z0-9]|gpu$", "", name).replace("ancestral", "a")
    key = re.sub(r"(?<=.)((discrete)?scheduler|flowmatch)$", "", key)  # classes of diffusers, names of SD.Next
    key = f"dpm{key[4:]}" if key.startswith("kdpm") else key
    return ALIASES.get(key, key)


_SAMPLERS = {_key(row[0]): (row, False) for row in NEAREST_SAMPLERS} | {
    _key(name): (row, True) for row in SAMPLERS for name in row[:2]
}
_SCHEDULES = {_key(name): (schedule, False) for name, schedule in NEAREST_SCHEDULES} | {
    _key(name): (schedule, True) for name, schedule in (*SCHEDULES, *zip(SCHEDULE_NAMES, SCHEDULE_NAMES, strict=True))
}
_ENDS = sorted({**_SCHEDULES, "k": ("karras", True), "ka": ("karras", True)}.items(), key=lambda row: -len(row[0]))
Row = tuple[str, str, str, str]


def _sampler(name: str) -> tuple[Row | None, bool, str]:
    """The row of a sampler, whether it is exact, and the key of a schedule at the end of its name."""
    key = _key(name)
    for end, _ in [("", ("", True)), *_ENDS]:
        begin = key.removesuffix(end)
        for tail in ("", "cfgpp"):
            found = _SAMPLERS.get(begin.removesuffix(tail))
            if found and begin.endswith(tail) and (not end or key.endswith(end)):
                return found[0], found[1] and not tail, end
    return None, False, ""


def sampler_and_schedule(
    sampler: str, schedule: str, notes: list[str], default_schedule: bool = True
) -> dict[str, Any]:
    """The fields `sampler` and `schedule` of a request; the schedule may be a part of the sampler's name.

    With `default_schedule`, a schedule that is not named is the usual one of the sampler. A note says what is used
    instead of a name that is not available here.
    """
    row, exact, end = (None, True, "") if sampler.lower() in AUTOMATIC else _sampler(sampler)
    if sampler.lower() not in AUTOMATIC and not exact:
        instead = f"not available; {row[1]} is used" if row else "unknown; the model's default is used"
        notes.append(f"Sampler: {short(sampler)} ({instead} instead)")
    named = _key(schedule) if schedule.lower() not in AUTOMATIC else end
    found, exact = dict(_ENDS).get(named, ("", False))
    if schedule and named and not exact:
        instead = f"not available; {found} is used" if found else "unknown; the model's default is used"
        notes.append(f"Schedule type: {short(schedule)} ({instead} instead)")
    if not named and row and default_schedule:
        found = row[3] if schedule else row[2]
    return {"sampler": row[1] if row else None, "schedule": found or None}


def short(value: object) -> str:
    """A value on one line of at most 80 letters, for a note."""
    try:
        line = " ".join(str(value)[:2000].split())
    except (RecursionError, ValueError):  # too deep, or a number of too many digits
        return "…"
    return line if len(line) <= 80 else line[:79] + "…"
