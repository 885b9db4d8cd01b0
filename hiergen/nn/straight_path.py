"""The straight path between noise and data: times, training targets and ODE solvers. Knows no network.

Time runs from noise (0) to data (1): x_t = t data + (1 - t) noise, and the velocity is data - noise. A model whose time runs the other way
swaps data and noise, and integrates over decreasing times.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

TimeDistribution = Literal["logit_normal", "uniform"]
Solver = Literal["euler", "heun", "sde"]

#: (state, time) -> velocity, of the state's shape.
VelocityFn = Callable[[Tensor, float], Tensor]


def time_grid(num_steps: int, shift: float = 1.0) -> list[float]:
    """Return `num_steps + 1` times from 0 to 1: i / num_steps, moved by t' = s t / (1 + (s - 1) t)."""
    even = [index / num_steps for index in range(num_steps + 1)]
    # s t + (1 - t) is the denominator in the form that gives exactly 1 at t = 1.
    return [shift * time / (shift * time + (1 - time)) for time in even]


def integrate(
    velocity: VelocityFn,
    state: Tensor,
    times: list[float],
    *,
    solver: Solver = "euler",
    draw: Callable[[], Tensor] | None = None,
    after_step: Callable[[int, Tensor], Tensor] | None = None,
    hold: Callable[[Tensor, float], Tensor] | None = None,
    repeats: int = 1,
) -> Tensor:
    """Return the state at the last time of a grid, starting with `state` at the first.

    "euler" and "heun" (the mean of the slopes at both ends of a step) solve dx = v dt. "sde" draws from the diffusion whose marginals
    are the flow's, dx = (v + s (1 - t)) dt + sqrt(2 (1 - t)) dW. Its score s = -(x - t v) / (1 - t) follows from the velocity, so the
    drift is (1 + t) v - x, without a division. The last step adds no noise.

    With `hold`, a part of the state is put in its place after every step. With `repeats`, every step is made several times, and between
    the state goes back from the later time u to the earlier t by fresh noise, x_t = (t / u) x_u + sqrt((1 - t)^2 - (t / u)^2 (1 - u)^2) e,
    so that what is free can agree with what is held. That is the forward process of the straight path, where variances add up.

    Args:
        velocity: Right-hand side of the equation, the velocity of the flow.
        state: Start, any shape; for "sde" it is noise.
        times: Increasing or decreasing times; for "sde" increasing ones from 0 on.
        solver: "euler", "heun" or "sde".
        draw: Returns fresh unit normal numbers in the shape of the state; needed by "sde", once per step but the last, and by `repeats`.
        after_step: Called with the index of each step and the state after it; what it returns is gone on from.
        hold: Returns a state with the part that is held replaced by what it is at a time.
        repeats: How often each step is made; above 1 for increasing times from 0 on.

    Raises:
        ValueError: If `draw` is missing where `solver` is "sde" or steps are repeated.

    Source:
        For `repeats` RePaint, arXiv:2201.09865.
        For "sde" SiT, arXiv:2401.08740, section 2.4 and appendix, with the diffusion coefficient that it calls sigma_t; 250 steps, the
        last of 0.04.
    """
    if solver == "sde" and draw is None:
        raise ValueError("draw is None, expected a source of noise: solver is 'sde'")
    if repeats > 1 and draw is None:
        raise ValueError(f"draw is None, expected a source of noise: repeats is {repeats}")
    keep = hold or (lambda state, _: state)
    for step, (time, following) in enumerate(itertools.pairwise(times)):
        width = following - time
        for repeat in range(repeats):
            if repeat and draw is not None:
                state = keep(_go_back(state, following, time, draw()), time)
            slope = velocity(state, time)
            if solver == "heun":
                slope = (slope + velocity(state + width * slope, following)) / 2
            elif solver == "sde":
                slope = (1 + time) * slope - state
            state = state + width * slope
            if draw is not None and solver == "sde" and step < len(times) - 2:
                state = state + math.sqrt(2 * (1 - time) * width) * draw()
            state = keep(state, following)
        if after_step is not None:
            state = after_step(step, state)
    return state


def _go_back(state: Tensor, later: float, earlier: float, noise: Tensor) -> Tensor:
    """Return a state of a later time as one of an earlier time."""
    share = earlier / later
    return share * state + math.sqrt((1 - earlier) ** 2 - (share * (1 - later)) ** 2) * noise


def draw_times(
    batch: int,
    distribution: TimeDistribution,
    *,
    device: torch.device,
    shift: float = 1.0,
    rng: torch.Generator | None = None,
) -> Float[Tensor, " b"]:
    """Return random times in (0, 1), one per sample: the logistic function of one normal each, or its quantile, then shifted.

    Both distributions read the same `batch` normal numbers, so that the order of random draws does not depend on the choice.

    Args:
        batch: Number of times.
        distribution: Distribution of the times before the shift.
        device: Where the times are wanted.
        shift: s in t' = s t / (1 + (s - 1) t), as in `FlowSettings.timestep_shift`.
        rng: Source of the draws; None for the global one.
    """
    normal = randn_tensor((batch,), generator=rng, device=device, dtype=torch.float32)
    time = normal.sigmoid() if distribution == "logit_normal" else torch.special.ndtr(normal)
    return shift * time / (shift * time + (1 - time)) if shift != 1 else time


def interpolate(
    data: Float[Tensor, "b n c"], noise: Float[Tensor, "b n c"], time: Float[Tensor, " b"]
) -> tuple[Float[Tensor, "b n c"], Float[Tensor, "b n c"]]:
    """Return x_t = t data + (1 - t) noise and its velocity data - noise."""
    t = time.to(data.dtype)[:, None, None]
    return t * data + (1 - t) * noise, data - noise


def velocity_losses(
    prediction: Float[Tensor, "b n c"], target: Float[Tensor, "b n c"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the mean squared error over all entries, and the mean over tokens of 1 - cosine over channels, in at least float32.

    Source:
        LightningDiT, arXiv:2501.01423, "velocity direction loss".
    """
    if prediction.dtype != torch.float64:
        prediction, target = prediction.float(), target.float()
    squared = (prediction - target).square().mean()
    return squared, (1 - F.cosine_similarity(prediction, target, dim=-1)).mean()
