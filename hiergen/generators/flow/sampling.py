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

from hiergen.checked import Count, Positive, Range
from hiergen.generators.guidance import GuidanceSettings
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

    Raises:
        ValueError: If a value is out of its range.

    Source:
        LightningDiT, arXiv:2501.01423: num_steps 249, shift 0.3, cfg_channels 3; scale 10 from t = 0.1 (64 epochs), scale 6.7
        from t = 0.125 (800 epochs). For `resamplings` RePaint, arXiv:2201.09865.
    """

    num_steps: Count = 249
    solver: Solver = "euler"
    last_step: Annotated[float, Range(0, 1, excludes_low=True, excludes_high=True)] = 0.04
    timestep_shift: Positive = 0.3
    cfg_channels: Count | None = None
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    resamplings: Count = 1

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
        """Return the time grid, `num_steps + 1` times from 0 to 1."""
        if self.solver == "sde":
            even = time_grid(self.num_steps - 1, self.timestep_shift)
            return [time * (1 - self.last_step) for time in even] + [1.0]
        return time_grid(self.num_steps, self.timestep_shift)

    def is_guided_at(self, time: float) -> bool:
        """Return whether guidance acts at a time in [0, 1]."""
        return self.is_guided and self.guidance_start <= time <= self.guidance_end


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
        noise: State of the flow at the start.
    """
    data, places = standardize(tokens).to(noise.dtype), given[..., None]
    return lambda state, time: torch.where(places, time * data + (1 - time) * noise, state)
