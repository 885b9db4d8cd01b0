"""How `FlowTransformer` integrates from noise to data; the path between them is in `hiergen.nn.straight_path`.

Letters: `b` batch, `n` tokens, `c` channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hiergen.checked import Count, Positive, Range, Share
from hiergen.generators.guidance import GuidanceSettings
from hiergen.known import Known
from hiergen.nn.straight_path import Solver, time_grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowSettings(GuidanceSettings):
    """How to integrate from noise to data.

    Guidance: r is the time t.

    Attributes:
        num_steps: Number of intervals of the time grid. "euler" calls the model once per interval, "heun" twice.
            LightningDiT's "250 steps" are 250 grid points, hence 249.
        solver: "euler" (first order) or "heun" (second order) follow the flow; "sde" follows the diffusion with the same marginals
            by Euler-Maruyama steps, SiT's other sampler (`integrate`).
        last_step: Length of the last step of "sde", which adds no noise, as a share of the time.
        timestep_shift: s in t' = s t / (1 + (s - 1) t); below 1 the grid is denser near the noise, 1 leaves it even.
        cfg_channels: Number of leading channels that are guided; None for all. The official sampler guides three (and needs a larger
            scale for it).
        guidance_start: Time from which guidance acts. Outside of guidance_start <= t <= guidance_end the velocity is the
            conditional one, at half of the work.
        guidance_end: Time up to which guidance acts.
        resamplings: How often each step is made, with fresh noise between, so that what is made can agree with what is given (`integrate`).
            Every time costs as much as the first.
        strength: Share of the path that is made, its end: below 1 it starts at time 1 - strength, from all tokens of `known` with as much
            noise in them, also from those that are not given. The grid before that time is left out.

    Raises:
        ValueError: If a value is out of its range.

    Source:
        LightningDiT, arXiv:2501.01423: num_steps 249, shift 0.3, cfg_channels 3; scale 10 from t = 0.1 (64 epochs), scale 6.7
        from t = 0.125 (800 epochs). For `resamplings` RePaint, arXiv:2201.09865; for `strength` SDEdit, arXiv:2108.01073.
    """

    num_steps: Count = 249
    solver: Solver = "euler"
    last_step: Annotated[float, Range(0, 1, excludes_low=True, excludes_high=True)] = 0.04
    timestep_shift: Positive = 0.3
    cfg_channels: Count | None = None
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    resamplings: Count = 1
    strength: Share = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver == "sde" and self.num_steps < 2:
            raise ValueError(
                f"num_steps is {self.num_steps}, solver 'sde' takes at least 2: its last step is a different one"
            )
        if not self.guidance_start <= self.guidance_end:
            raise ValueError(
                f"guidance_start is {self.guidance_start}, expected at most guidance_end, {self.guidance_end}"
            )

    def times(self) -> list[float]:
        """Return the time grid, `num_steps + 1` times from 0 to 1, or of a `strength` below 1 its start and the later ones of these."""
        if self.solver == "sde":
            even = time_grid(self.num_steps - 1, self.timestep_shift)
            grid = [time * (1 - self.last_step) for time in even] + [1.0]
        else:
            grid = time_grid(self.num_steps, self.timestep_shift)
        start = 1 - self.strength
        # A step that rounding alone makes is none.
        return [start, *(time for time in grid if time > start + 1e-6)]

    def is_guided_at(self, time: float) -> bool:
        """Return whether guidance acts at a time in [0, 1]."""
        return self.is_guided and self.guidance_start <= time <= self.guidance_end


def start_state(
    known: Known | None, strength: float, standardize: Callable[[Tensor], Tensor], noise: Float[Tensor, "b n c"]
) -> Float[Tensor, "b n c"]:
    """Return where the path starts: the noise, or for a `strength` below 1 known tokens with as much of it.

    Args:
        known: What the caller gave; all of its tokens are read, given or not.
        strength: Share of the path that is made.
        standardize: Turns tokens into the units of the flow.
        noise: Noise of all levels.

    Raises:
        ValueError: If `strength` is below 1 and there are no tokens of all levels to start from.
    """
    if strength == 1:
        return noise
    tokens = None if known is None else known.pyramid.concat().to(noise.device)
    if tokens is None or tokens.shape != noise.shape:
        held = "None" if tokens is None else f"of tokens {tuple(tokens.shape)}"
        raise ValueError(
            f"strength is {strength} and known is {held}, expected tokens {tuple(noise.shape)} to start from"
        )
    return (1 - strength) * standardize(tokens).to(noise.dtype) + strength * noise


def hold_tokens(
    tokens: Float[Tensor, "b n c"],
    given: Bool[Tensor, "b n"],
    standardize: Callable[[Tensor], Tensor],
    noise: Float[Tensor, "b n c"],
) -> Callable[[Tensor, float], Tensor]:
    """Return what puts given tokens into a state of the flow, as noisy as the state is at a time (`integrate`).

    Args:
        tokens: Tokens in the tokenizer's own units; only those that are given are read.
        given: Where they are given.
        standardize: Turns tokens into the units of the flow.
        noise: Noise of the start.
    """
    data, places = standardize(tokens).to(noise.dtype), given[..., None]
    return lambda state, time: torch.where(places, time * data + (1 - time) * noise, state)
