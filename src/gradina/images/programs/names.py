"""What other programs call samplers and schedules: ours of that name, or the nearest of ours, said in a note."""

from __future__ import annotations

import re
from typing import Any

from gradina.request import SCHEDULE_NAMES

# Their name            ours               schedule: not named  "Automatic"
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
    ("SGD",             "sgd",             "linspace",          "linspace"),  # from here on names are ours
    ("Momentum",        "momentum",        "linspace",          "linspace"),
    ("Nesterov",        "nesterov",        "linspace",          "linspace"),
    ("Adam",            "adam",            "linspace",          "linspace"),
)  # fmt: skip

# Theirs that we lack   nearest of ours    schedule: not named  "Automatic"
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

# Their name            ours; of two rows with one of ours, the first is written
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
    ("Polyexponential",   "exponential"),  # which it is at their rho of 1
    ("Discrete",          "linspace"),
    ("Native",            "linspace"),
)  # fmt: skip

# Theirs that we lack     nearest of ours
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

ALIASES = {  # by their keys: letters and digits alone
    "lmsd": "lms", "dpmsde": "dpmppsde", "dpmad": "dpmadaptive", "ddimv3": "ddim", "unipcmultistep": "unipc",
    "dpmsolvermultistep": "dpmpp2m", "dpmsolverpp": "dpmpp2m", "dpmsolverpp2m": "dpmpp2m", "dpm2pp2m": "dpmpp2m",
    "dpmsolversinglestep": "dpmpp2s", "dpmsolversde": "dpmppsde", "deismultistep": "deis",
}  # fmt: skip
OPEN = ("", "default", "automatic", "none", "auto")  # whatever the program takes by itself


def _key(name: str) -> str:
    """Letters and digits alone, so that `DPM++ 2S a` and `dpmpp_2s_ancestral` are one."""
    name = name.lower().replace("+", "p").removeprefix("k_").removeprefix("sample_")
    key = re.sub(r"[^a-z0-9]|gpu$", "", name).replace("ancestral", "a")
    key = re.sub(
        r"(?<=.)((discrete)?scheduler|flowmatch)$", "", key
    )  # classes of diffusers, and SD.Next's names of them
    key = f"dpm{key[4:]}" if key.startswith("kdpm") else key
    return ALIASES.get(key, key)


_SAMPLERS = {_key(row[0]): (row, False) for row in NEAREST_SAMPLERS} | {
    _key(name): (row, True) for row in SAMPLERS for name in row[:2]
}
_SCHEDULES = {_key(theirs): (ours, False) for theirs, ours in NEAREST_SCHEDULES} | {
    _key(name): (ours, True) for name, ours in (*SCHEDULES, *((ours, ours) for ours in SCHEDULE_NAMES))
}
_ENDS = sorted({**_SCHEDULES, "k": ("karras", True), "ka": ("karras", True)}.items(), key=lambda row: -len(row[0]))
Row = tuple[str, str, str, str]


def _sampler(name: str) -> tuple[Row | None, bool, str]:
    """The row of a sampler, whether it is the very one, and the key of a schedule that its name ends in."""
    key = _key(name)
    for end, _ in [("", ("", True)), *_ENDS]:
        begin = key.removesuffix(end)
        for tail in ("", "cfgpp"):
            found = _SAMPLERS.get(begin.removesuffix(tail))
            if found and begin.endswith(tail) and (not end or key.endswith(end)):
                return found[0], found[1] and not tail, end
    return None, False, ""


def sampler_and_schedule(sampler: str, schedule: str, notes: list[str], by_itself: bool = True) -> dict[str, Any]:
    """`sampler` and `schedule` of a request, also where the schedule is a part of the sampler's name.

    A schedule that is not named is the one that goes without saying with that sampler, if `by_itself`. A note says
    what draws instead of what we lack.
    """
    row, same, end = (None, True, "") if sampler.lower() in OPEN else _sampler(sampler)
    if sampler.lower() not in OPEN and not same:
        instead = f"not among ours; {row[1]} draws" if row else "not known here; the model's own draws"
        notes.append(f"Sampler: {short(sampler)} ({instead} instead)")
    named = _key(schedule) if schedule.lower() not in OPEN else end
    found, same = dict(_ENDS).get(named, ("", False))
    if schedule and named and not same:
        instead = f"not among ours; {found} is used" if found else "not known here; the model's own is used"
        notes.append(f"Schedule type: {short(schedule)} ({instead} instead)")
    if not named and row and by_itself:
        found = row[3] if schedule else row[2]
    return {"sampler": row[1] if row else None, "schedule": found or None}


def short(value: object) -> str:
    """A value on one line of at most 80 letters."""
    try:
        line = " ".join(str(value)[:2000].split())
    except (RecursionError, ValueError):  # too deep, or a number of too many digits
        return "…"
    return line if len(line) <= 80 else line[:79] + "…"
