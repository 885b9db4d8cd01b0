"""Muon: the momentum of a matrix is made orthogonal before it is applied, so that all its directions are learned at one pace.

PyTorch has one too. It takes matrices alone, always computes in bfloat16, which processors without such instructions emulate, and cannot
skip a step whose gradient is not finite without asking the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

#: Coefficients of the iteration: chosen for speed at small singular values, not for an exact 1 (Jordan, "Muon", 2024).
_QUINTIC, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5
#: Root mean square of an entry of AdamW's updates, which those of Muon are brought to, so that both take the same learning rate.
_UPDATE_RMS = 0.2


class Muon(torch.optim.AdamW):
    """AdamW, of which the groups that have an entry "momentum", of matrices alone, are stepped by Muon.

    Source:
        Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024; the scale of updates and the weight decay are those of
        Moonlight, arXiv:2502.16982, section 2.2.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; where `found_inf` is 1 weights and momentum stay as they are."""
        groups = self.param_groups
        self.param_groups = _without_matrices(groups)
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in groups:
            for parameter in group["params"] if "momentum" in group else ():
                if parameter.grad is not None:
                    self._update(parameter, group, found_inf)
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        # AdamW expects its own entries in the state of every parameter.
        super().__setstate__({**state, "param_groups": _without_matrices(state["param_groups"])})
        self.param_groups = state["param_groups"]

    def _update(self, parameter: Tensor, group: dict[str, Any], found_inf: Tensor | None) -> None:
        gradient, decay = parameter.grad, group["momentum"]
        assert gradient is not None
        before = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        momentum = before.lerp(gradient, 1 - decay)
        direction = orthogonal(gradient.lerp(momentum, decay))
        scale = group["lr"] * _UPDATE_RMS * math.sqrt(max(parameter.shape))
        moved = parameter * (1 - group["lr"] * group["weight_decay"]) - scale * direction
        if found_inf is not None:
            is_bad = found_inf > 0
            momentum, moved = torch.where(is_bad, before, momentum), torch.where(is_bad, parameter, moved)
        before.copy_(momentum)
        parameter.copy_(moved)


def _without_matrices(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [group for group in groups if "momentum" not in group]


def orthogonal(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """Return about the nearest matrix with orthogonal rows or columns: the singular values become 0.7 to 1.2.

    By five steps of a Newton-Schulz iteration, in bfloat16 on a GPU and in the matrix's own format elsewhere. Values below a thousandth
    of the matrix's norm stay smaller; zero stays zero.
    """
    a, b, c = _QUINTIC
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if is_tall else x).to(matrix.dtype)
