"""The exception tree: every error that a user can cause is one of these, with a message of one line.

GradinaError
├── RequestError     a field of a Request, or an option, that cannot be honoured
├── PictureError     a file that is no picture, too large, or without a request
├── WeightsError     a checkpoint that is truncated, of another family, or lacking keys
│   └── HubError         a model that could not be fetched from, or pushed to, the hub
├── RecipeError      a training recipe or its data that cannot be used
│   └── Diverged         training whose loss is NaN or infinite
├── NumericalError   a network or sampler that returned NaN or infinite values
├── DiskError        a file or folder that cannot be written: disk full, no permission, no such folder
└── MissingExtra     an optional package that is not installed
"""

from __future__ import annotations


class GradinaError(Exception):
    """Any error that a user can cause; its message is one line."""


class RequestError(GradinaError, ValueError):
    """A field of a request that cannot be honoured."""


class PictureError(GradinaError, ValueError):
    """A picture file that cannot be used."""


class WeightsError(GradinaError, ValueError):
    """A checkpoint that cannot be loaded."""


class HubError(WeightsError):
    """A model that could not be fetched from, or pushed to, the hub."""


class RecipeError(GradinaError, ValueError):
    """A training recipe, or its data, that cannot be used."""


class Diverged(RecipeError):
    """Training whose loss is NaN or infinite; the weights are those of the last good step."""


class NumericalError(GradinaError, ArithmeticError):
    """A network or a sampler that returned NaN or infinite values."""


class DiskError(GradinaError, OSError):
    """A file or folder that cannot be written, with the operating system's `errno`."""


class MissingExtra(GradinaError, ImportError):
    """An optional package that is not installed; the message names the extra."""
