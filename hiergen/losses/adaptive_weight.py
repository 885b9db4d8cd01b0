"""The weight that makes two losses pull equally hard on one parameter."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hiergen.nn.running.precision import widen
from hiergen.nn.running.processes import process_mean


def adaptive_weight(
    reference: Float[Tensor, ""], other: Float[Tensor, ""], parameter: Tensor, *, maximum: float = 1e4
) -> Float[Tensor, ""]:
    """Return |d reference / d parameter| / (|d other / d parameter| + 1e-4), between 0 and `maximum`, without gradient.

    The gradients are averaged over all processes. Both graphs are kept for the backward pass that follows. A loss that does not depend
    on the parameter has gradient 0.

    Args:
        reference: The loss that sets the scale.
        other: The loss to be weighted.
        parameter: Where the gradients are compared: the last parameter that both losses pass through.
        maximum: Largest weight.

    Source:
        VQGAN, arXiv:2012.09841, equation 7; VA-VAE, arXiv:2501.01423, uses 1e8 for its alignment loss.
    """
    norms = []
    for loss in (reference, other):
        (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        norms.append(widen(process_mean(gradient)).norm())
    return (norms[0] / (norms[1] + 1e-4)).clamp(0.0, maximum).detach()
