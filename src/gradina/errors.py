"""What can go wrong, as a tree: every error that a user can cause is one of these, with one clear line.

GradinaError
├── RequestError     a field of a Request, or an option, that cannot be honoured
├── PictureError     a file that is no picture, too large, or carries nothing to draw from
├── WeightsError     a checkpoint that is truncated, of another family, or lacking keys
│   └── HubError     a model that could not be fetched from, or pushed to, the hub
├── RecipeError      a training recipe or its data that cannot be used
│   └── Diverged         training whose loss is no longer a number
├── NumericalError   a network or sampler that gave NaN or infinite values: no picture
├── DiskError        a file or folder that cannot be written: no room, no permission, no such place
└── MissingExtra     an optional package that is not installed
"""

from __future__ import annotations


class GradinaError(Exception):
    """Anything a user can put right; the message is one line."""


class RequestError(GradinaError, ValueError):
    """A field of a request that cannot be honoured."""


class PictureError(GradinaError, ValueError):
    """A picture file that cannot be used."""


class WeightsError(GradinaError, ValueError):
    """A checkpoint that cannot be loaded."""


class HubError(WeightsError):
    """A model that the hub did not give or take."""


class RecipeError(GradinaError, ValueError):
    """A training recipe, or its data, that cannot be used."""


class Diverged(RecipeError):
    """Training whose loss is no longer a number; the weights are those of the last good step."""


class NumericalError(GradinaError, ArithmeticError):
    """A network or a sampler that gave NaN or infinite values, of which no picture can be made."""


class DiskError(GradinaError, OSError):
    """A file or folder that cannot be written; `errno` is the operating system's."""


class MissingExtra(GradinaError, ImportError):
    """An optional package that is not installed; the message names the extra."""
