"""Reuse: what lies deep in a U-Net hardly changes from one step to the next, so it need not be computed each time."""

from __future__ import annotations

from torch import Tensor

from gradina.models.unet import UNet


class DeepCache:
    """A U-Net that keeps its inner part for several calls; what touches the input itself is always computed anew.

    One walk needs one of these, since it remembers: at call 0, `every`, 2 `every`, ... all is computed, and where the
    number of examples changes. Source: Ma et al., DeepCache, 2312.00858, section 3.2, with the outermost skip.
    """

    def __init__(self, unet: UNet, every: int) -> None:
        self.unet, self.every = unet, every
        self.left = 0  # calls for which what was kept still serves
        self.kept: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        first, time = self.unet.enter(x, t)
        if self.kept is None or not self.left or len(self.kept) != len(x):
            self.kept, self.left = self.unet.inner(first, time, cond), self.every
        self.left -= 1
        return self.unet.leave(self.kept, first, time, cond)
