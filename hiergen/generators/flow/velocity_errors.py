"""How far the velocity of a flow is from the right one on data that are there: how well a condition fits them, without a likelihood.

Letters: `b` batch, `k` times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hiergen.generators.conditioning import resolve_labels
from hiergen.generators.flow.model import FlowTransformer
from hiergen.nn.running.modes import evaluating
from hiergen.nn.running.precision import widen
from hiergen.nn.straight_path import interpolate
from hiergen.pyramid import TokenPyramid
from hiergen.seeding import make_rng


@torch.no_grad()
def velocity_errors(
    model: FlowTransformer, pyramid: TokenPyramid, condition: Any, *, times: Sequence[float], seed: int = 0
) -> Float[Tensor, "b k"]:
    """Return the mean squared error of the velocity of standardized tokens at some times of the path.

    The noise of a time is the same for all samples, so that errors can be compared between them and between conditions. They are no
    likelihoods, not even up to a factor: only the whole path, weighted, bounds one.

    Args:
        model: The flow.
        pyramid: All levels, as the tokenizer gives them.
        condition: What `generate` takes, one per sample.
        times: Times of the path, 0 (noise) to 1.
        seed: Seed of the noise.

    Raises:
        ValueError: If there is no time, one is out of range, or pyramid and condition do not fit.

    Source:
        Conditions compared by this error: arXiv:2303.16203, which draws times and noise.
    """
    if not times or not all(0 <= time <= 1 for time in times):
        raise ValueError(f"times are {tuple(times)}, expected at least one, each 0 to 1")
    model.check_pyramid(pyramid)
    config = model.config
    told = resolve_labels(condition, config["num_classes"], config["label_dropout"], model.device, model.label_embed)
    found = []
    with evaluating(model):
        data = model.standardize(pyramid.to(model.device).concat())
        if len(told) != len(data):
            raise ValueError(
                f"condition holds {len(told)} samples, expected {len(data)}, one per sample of the pyramid"
            )
        for time in times:
            noise = torch.randn(data.shape[1:], generator=make_rng("noise", seed, round(100 * time)))
            moments = torch.full((len(data),), float(time), device=model.device)
            state, target = interpolate(data, noise.to(data).expand_as(data), moments)
            found.append(widen(model.velocity(state, moments, told) - target).square().mean(dim=(1, 2)))
    return torch.stack(found, dim=1)
