"""Muon: orthogonalised momentum for matrices, AdamW for all else.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); Liu et al., "Muon is Scalable
for LLM Training" (2502.16982), equation 4, for the scale of the updates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradina.runtime.device import multiplies_bf16

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c of a quintic that brings singular values to about 1 in 5 steps
ITERATIONS = 5
MOMENTUM = 0.95
ADAM_RMS = 0.2  # of an update of AdamW; Muon's are scaled to it, so that both take the same learning rates
SMALLEST = 32  # a matrix with a shorter side gains nothing


class Muon(torch.optim.AdamW):
    """AdamW, but parameter groups with `orthogonal` set take orthogonalised updates of the same size.

    Each of their matrices is orthogonalised at every so many steps, in turns, and its last update is taken again in
    between: the momentum, an average over twenty steps, has hardly changed.
    """

    def __init__(self, params: Any, every: int = 4, **options: Any) -> None:
        super().__init__(params, **options)
        self.every = every

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update of all parameters that have a gradient."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group.get("orthogonal")]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group.get("orthogonal"):
                self._orthogonal_step(group)
        return loss

    def _orthogonal_step(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        states, gradients = [self.state[p] for p in parameters], [p.grad for p in parameters]
        for p, state in zip(parameters, states, strict=True):
            if not state:
                state |= {"exp_avg": torch.zeros_like(p), "update": torch.zeros_like(p), "step": torch.zeros(())}
        momenta = [state["exp_avg"] for state in states]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        due = [i for i, state in enumerate(states) if not state["step"] or (int(state["step"]) + i) % self.every == 0]
        by_shape = defaultdict[tuple[int, ...], list[int]](list)
        for i in due:
            by_shape[tuple(as_matrix(parameters[i]).shape)].append(i)
        for (rows, columns), indices in by_shape.items():
            nesterov = [as_matrix(torch.lerp(gradients[i], momenta[i], MOMENTUM)) for i in indices]
            scale = ADAM_RMS * max(rows, columns) ** 0.5
            for i, update in zip(indices, scale * orthogonalised(torch.stack(nesterov)), strict=True):
                states[i]["update"].copy_(like(update, parameters[i]))
        torch._foreach_add_([state["step"] for state in states], 1)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, [state["update"] for state in states], alpha=-group["lr"])


def hidden_matrices(network: nn.Module) -> set[str]:
    """The names of the weights that Muon is for: matrices and convolutions, but embeddings and very small ones."""
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return {f"{name}.weight" for name, layer in layers if min(as_matrix(layer.weight).shape) >= SMALLEST}


def as_matrix(x: Tensor) -> Tensor:
    """A weight as (outputs, inputs), a convolution's with its positions among the inputs: in channels_last a view."""
    return x.movedim(1, -1).flatten(1) if x.ndim > 2 else x


def like(matrix: Tensor, weight: Tensor) -> Tensor:
    """A matrix that `as_matrix` made, in the shape and dtype of its weight."""
    matrix = matrix.to(weight.dtype)
    outputs, inputs, *positions = weight.shape
    return matrix.reshape(outputs, *positions, inputs).movedim(-1, 1) if positions else matrix


def orthogonalised(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices of a batch (b, m, n), about, by Newton-Schulz iteration.

    In bf16, but on CPUs that do not multiply in it.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x.bfloat16() if x.device.type != "cpu" or multiplies_bf16() else x.float()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x
