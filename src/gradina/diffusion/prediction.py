"""What a network was trained to predict (the noise, the velocity or the picture), as scalings of one equation.

    denoised = c_skip(sigma) * x + c_out(sigma) * network(c_in(sigma) * x, t)

The fourth scaling, c_noise, is `Schedule.t_of`: the time step that stands for a noise level. The training target is the
same equation solved for the output, with both scalings in the form that is finite at sigma 0 and infinity.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradina.errors import WeightsError

Scaling = Callable[[Tensor], Tensor]


def over(a: Tensor, x: Tensor) -> Tensor:
    """`a`, a scalar () or one value for each example (b,), shaped to multiply x (b, c, h, w), in x's dtype."""
    return a if a.ndim == 0 else a.to(x).view(-1, *[1] * (x.ndim - 1))


def _variance_preserving(sigma: Tensor) -> Tensor:
    return (sigma**2 + 1).rsqrt()


@dataclass(frozen=True)
class Prediction:
    """A kind of prediction as scalings of sigma (Karras et al. 2206.00364, eq. 7), and its name in diffusers."""

    name: str
    diffusers: str
    c_skip: Scaling
    c_out: Scaling
    of_picture: Scaling  # the weight of z in the target, and
    of_noise: Scaling  # the weight of n
    c_in: Scaling = _variance_preserving

    def denoised(self, x: Tensor, sigma: Tensor, output: Tensor) -> Tensor:
        """The estimate of x0 that the network's `output` at (x, sigma) stands for; all (b, c, h, w)."""
        return over(self.c_skip(sigma), x) * x + over(self.c_out(sigma), x) * output

    def output(self, x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
        """The network's output at (x, sigma > 0) for a `denoised`: the inverse of the method `denoised`."""
        return (denoised - over(self.c_skip(sigma), x) * x) / over(self.c_out(sigma), x)

    def target(self, z: Tensor, n: Tensor, sigma: Tensor) -> Tensor:
        """The output to train for at x = z + sigma * n, for sigma from 0 to infinity: `output` of (x, sigma, z)."""
        return over(self.of_picture(sigma), z) * z + over(self.of_noise(sigma), z) * n


# Spec: sgm `denoiser_scaling.py`; v is that of Salimans & Ho 2202.00512, v = alpha * n - sigma_vp * z.
ones, zeros = torch.ones_like, torch.zeros_like
PREDICTIONS: dict[str, Prediction] = {
    p.name: p
    for p in (
        Prediction("eps", "epsilon", c_skip=ones, c_out=torch.neg, of_picture=zeros, of_noise=ones),
        Prediction(
            "v", "v_prediction",
            c_skip=lambda s: 1 / (s**2 + 1), c_out=lambda s: -s * (s**2 + 1).rsqrt(),
            of_picture=lambda s: -(1 + s**-2).rsqrt(), of_noise=lambda s: (1 + s**2).rsqrt(),
        ),
        Prediction("x0", "sample", c_skip=zeros, c_out=ones, of_picture=ones, of_noise=zeros),
    )
}  # fmt: skip


def prediction_named(name: str) -> Prediction:
    """The prediction of that name, ours (eps, v, x0) or that of diffusers (epsilon, v_prediction, sample).

    Raises WeightsError, listing the choices, where there is none.
    """
    for prediction in PREDICTIONS.values():
        if name in (prediction.name, prediction.diffusers):
            return prediction
    choices = ", ".join(f"{p.name} ({p.diffusers})" for p in PREDICTIONS.values())
    raise WeightsError(f"prediction: there is no {reprlib.repr(name)} (choices: {choices})")
