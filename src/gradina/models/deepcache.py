"""DeepCache: deep features of a U-Net hardly change from one step to the next, so they are not computed at each."""

from __future__ import annotations

from torch import Tensor

from gradina.models.unet import Control, UNet


class DeepCache:
    """A U-Net that keeps the output of its body for several calls; stem and head are always computed.

    It remembers, so each run of a sampler needs its own. The body is computed at call 0, `every`, 2 `every`, ..., and
    where the batch size changes. In between, a control reaches only the outermost skip. Source: Ma et al., DeepCache
    (2312.00858), section 3.2, with that skip.
    """

    def __init__(self, unet: UNet, every: int) -> None:
        self.unet, self.every = unet, every
        self.calls_left = 0  # for which the cached features serve
        self.cached: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor, control: Control | None = None) -> Tensor:
        x, time = self.unet.stem(x, t)
        if self.cached is None or not self.calls_left or len(self.cached) != len(x):
            self.cached, self.calls_left = self.unet.body(x, time, cond, control), self.every
        self.calls_left -= 1
        return self.unet.head(self.cached, x, time, cond, control)
