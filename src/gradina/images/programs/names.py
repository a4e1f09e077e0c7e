"""Names of samplers and schedules in other programs: the one of that name here, or the nearest, with a note."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

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

# Nearest here      schedule: not named  "Automatic"    not available here
NEAREST_SAMPLERS = (
    ("heun",            "linspace",          "karras",      ("DPM2",)),
    ("heun",            "linspace",          "linspace",    ("HeunPP2",)),
    ("heun",            "karras",            "karras",      ("Restart",)),
    ("euler_ancestral", "linspace",          "karras",      ("DPM2 a",)),
    ("euler_ancestral", "linspace",          "linspace",    ("LCM", "TCD")),
    ("pndm",            "linspace",          "linspace",    ("IPNDM", "IPNDM V")),
    ("unipc",           "linspace",          "linspace",    ("UniPC bh2",)),
    ("dpmpp_2m",        "linspace",          "karras",      ("DPM++ 2S", "DPM++ 2Mv2", "DPM++ 3M")),
    ("dpmpp_2m",        "linspace",          "linspace",    ("DPM fast", "DPM adaptive", "DEIS", "RES Multistep")),
    ("dpmpp_2m_sde",    "linspace",          "exponential", ("DPM++ 2M SDE Heun", "DPM++ 3M SDE")),
    ("dpmpp_2m_sde",    "linspace",          "linspace",    ("SA Solver", "ER SDE")),
    ("dpmpp_sde",       "linspace",          "karras",      ("DPM++ 2S a",)),
)  # fmt: skip

# Name here: names there, of which the first is written
SCHEDULES = {
    "karras":      ("Karras",),
    "exponential": ("Exponential", "Polyexponential"),  # the same at rho 1, the default
    "sgm_uniform": ("SGM Uniform",),
    "ays":         ("Align Your Steps",),
    "beta":        ("Beta",),
    "linspace":    ("Uniform", "Normal", "Discrete", "Native"),
    "leading":     ("DDIM", "DDIM Uniform"),
    "trailing":    ("Simple", "Turbo"),
}  # fmt: skip

# Nearest here: not available here
NEAREST_SCHEDULES = {
    "ays":      ("KL Optimal", "Align Your Steps GITS", "Align Your Steps 11", "Align Your Steps 32", "GITS"),
    "karras":   ("Karras Exponential", "Karras Dynamic", "EDM Playground v2.5"),
    "linspace": ("Linear Quadratic", "Smoothstep"),
    "beta":     ("Beta57",),
    "trailing": ("LCM", "TCD"),
}  # fmt: skip

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


_SAMPLERS = {_key(name): (row, False) for *row, names in NEAREST_SAMPLERS for name in names} | {
    _key(name): (row, True) for there, *row in SAMPLERS for name in (there, row[0])
}
_SCHEDULES = {_key(name): (here, False) for here, names in NEAREST_SCHEDULES.items() for name in names} | {
    _key(name): (here, True) for here, names in SCHEDULES.items() for name in (here, *names)
}
_ENDS = _SCHEDULES | {"k": ("karras", True), "ka": ("karras", True)}  # of the names of samplers


def _sampler(name: str) -> tuple[list[str] | None, bool, str]:
    """A sampler here and its two schedules, whether it is exact, and the key of a schedule at the end of its name."""
    key = _key(name)
    for end, tail in product(("", *sorted(_ENDS, key=len, reverse=True)), ("", "cfgpp")):
        if key.endswith(tail + end) and (found := _SAMPLERS.get(key.removesuffix(tail + end))):
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
    if not exact:
        instead = f"not available; {row[0]} is used" if row else "unknown; the model's default is used"
        notes.append(f"Sampler: {short(sampler)} ({instead} instead)")
    named = _key(schedule) if schedule.lower() not in AUTOMATIC else end
    found, exact = _ENDS.get(named, ("", False))
    if schedule and named and not exact:
        instead = f"not available; {found} is used" if found else "unknown; the model's default is used"
        notes.append(f"Schedule type: {short(schedule)} ({instead} instead)")
    if not named and row and default_schedule:
        found = row[2] if schedule else row[1]
    return {"sampler": row[0] if row else None, "schedule": found or None}


def short(value: object) -> str:
    """A value on one line of at most 80 letters, for a note."""
    try:
        line = " ".join(str(value)[:2000].split())
    except (RecursionError, ValueError):  # too deep, or a number of too many digits
        return "…"
    return line if len(line) <= 80 else line[:79] + "…"
