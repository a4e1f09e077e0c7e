"""A network with its schedule and its prediction is a denoiser: the function that samplers and guidance are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradina.diffusion.conditioning import Cond
from gradina.diffusion.prediction import Prediction, over
from gradina.diffusion.schedule import Schedule

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x (b, c, h, w), sigma () or (b,)) -> denoised (b, c, h, w)
Network = Callable[[Tensor, Tensor, Cond], Tensor]  # (c_in * x, t (b,) float, cond) -> output (b, c, h, w)


def noised(z: Tensor, n: Tensor, sigma: Tensor) -> Tensor:
    """The noisy picture x = z + sigma * n (b, c, h, w) at noise level sigma, () or (b,)."""
    return z + over(sigma, z) * n


def snr(sigma: Tensor) -> Tensor:
    """The signal-to-noise ratio alphas_cumprod / (1 - alphas_cumprod) = 1 / sigma^2 of a noise level."""
    return sigma**-2


def on_states(unet: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Network:
    """A U-Net that reads text states (b, n, width) and nothing else, as a network of `Cond`."""
    return lambda x, t, cond: unet(x, t, cond.states)


def with_channels(network: Network, extra: Tensor) -> Network:
    """A network that takes `extra` (b, k, h, w) as further channels of its input, not scaled by c_in.

    So checkpoints for inpainting take the mask and the masked latents. A batch that guidance doubled gets them twice.
    """

    def widened(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return network(torch.cat([x, extra.repeat(len(x) // len(extra), 1, 1, 1)], 1), t, cond)

    return widened


@dataclass(frozen=True)
class Denoiser:
    """Estimates the clean picture with a network: `denoiser(x, sigma, cond)` -> denoised, in the units of x.

    denoised = c_skip * x + c_out * network(c_in * x, t, cond) (Karras et al. 2206.00364, eq. 7). With `whole_t` time
    steps are rounded, as some samplers of the reference do; see `SamplerSpec.whole_t`.
    """

    network: Network
    schedule: Schedule
    prediction: Prediction
    whole_t: bool = False

    def inputs(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The network's inputs for x (b, c, h, w) at sigma, () or (b,): c_in * x, and t (b,) as float32."""
        t = self.schedule.t_of(sigma)
        t = t.round() if self.whole_t else t
        return over(self.prediction.c_in(sigma), x) * x, t.to(x.device, torch.float32).expand(len(x))

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The estimate of x0 (b, c, h, w) in x = x0 + sigma * n; sigma is () or (b,)."""
        return self.prediction.denoised(x, sigma, self.network(*self.inputs(x, sigma), cond))

    def noised(self, z: Tensor, n: Tensor, sigma: Tensor) -> Tensor:
        """The noisy picture z + sigma * n; all (b, c, h, w), sigma () or (b,)."""
        return noised(z, n, sigma)

    def target(self, z: Tensor, n: Tensor, sigma: Tensor) -> Tensor:
        """The output to train for at z + sigma * n; the loss is mse(network(*inputs(x, sigma), cond), target)."""
        return self.prediction.target(z, n, sigma)
