"""Classifier-free guidance whose scale may change from step to step of a generation."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

GuidanceSchedule = Literal[
    "constant",
    "linear",
    "linear_re",
    "linear_constant",
    "triangular",
    "rectangular",
    "step",
    "cosine",
    "cosine_re",
]

# The official sampler lifts schedules that start or end at 1 by this much; kept so that results agree.
_LIFT = 1e-4
_DEFAULT_WINDOW_START = {"rectangular": 0.05, "step": 0.25}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceSettings:
    """How strongly each generation step follows the condition.

    With `r` the fraction of the schedule that is done, 0 at the first step and 1 at the last, `s` the `guidance_scale` and `m`
    the `min_guidance_scale`, the scale is

    - "constant": s;
    - "linear": rises from 1 to s, 1 + (s - 1) r; "linear_re": falls from s to 1;
    - "linear_constant": rises from 1 at r = 0 to s at r = `peak`, then s;
    - "triangular": rises from 1 to s at r = `peak`, then falls to 1;
    - "rectangular": s where `window_start` <= r <= `window_end`, else m;
    - "step": s where r >= `window_start`, else m;
    - "cosine": rises from 1 to s as 1 + (s - 1)(1 - cos(pi r)) / 2; "cosine_re": falls from s to 1 in the same way.

    "linear", "linear_re" and "triangular" are 1e-4 above this formula, as in the official sampler.

    Attributes:
        guidance_scale: s, applied as `null + scale * (conditional - null)`; 1 or less turns guidance off, and with it the
            second half of the batch.
        guidance_schedule: One of the above.
        min_guidance_scale: m. Exactly 1 stands for 1.0001, as in the official sampler.
        window_start: Where a window opens, 0 to 1; None is the schedule's default (rectangular 0.05, step 0.25).
        window_end: Where the rectangular window closes, 0 to 1.
        peak: Where "linear_constant" and "triangular" reach s, above 0 and up to 1.

    Raises:
        ValueError: If a value is out of its range.

    Source:
        ResTok, arXiv:2601.03955, official sampler. Its two cosine schedules do not run; their definition is ours.
    """

    guidance_scale: float = 1.0
    guidance_schedule: GuidanceSchedule = "constant"
    min_guidance_scale: float = 1.0001
    window_start: float | None = None
    window_end: float = 1.0
    peak: float = 0.5

    def __post_init__(self) -> None:
        known = get_args(GuidanceSchedule)
        if self.guidance_schedule not in known:
            raise ValueError(f"guidance_schedule is {self.guidance_schedule!r}, expected one of {', '.join(known)}")
        for name in ("window_start", "window_end"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, expected 0 to 1")
        if not 0 < self.peak <= 1:
            raise ValueError(f"peak is {self.peak}, expected above 0 and up to 1")

    @property
    def is_guided(self) -> bool:
        return self.guidance_scale > 1

    def scale_at(self, ratio: float) -> float:
        """Return the scale at a fraction of the schedule, 0 to 1."""
        match self.guidance_schedule:
            case "linear":
                return 1 + self._rise(ratio) + _LIFT
            case "linear_re":
                return 1 + self._rise(1 - ratio) + _LIFT
            case "linear_constant":
                return 1 + self._rise(min(ratio / self.peak, 1.0))
            case "triangular":
                rising = ratio <= self.peak
                return 1 + self._rise(ratio / self.peak if rising else (1 - ratio) / (1 - self.peak)) + _LIFT
            case "rectangular":
                return self._windowed(ratio, self.window_end)
            case "step":
                return self._windowed(ratio, 1.0)
            case "cosine":
                return 1 + self._rise((1 - math.cos(math.pi * ratio)) / 2)
            case "cosine_re":
                return 1 + self._rise((1 + math.cos(math.pi * ratio)) / 2)
            case _:
                return self.guidance_scale

    def scales(self, num_steps: int) -> tuple[float, ...]:
        """Return the scale of every step of a schedule of `num_steps` steps: step k is at k / (num_steps - 1)."""
        return tuple(self.scale_at(step / max(num_steps - 1, 1)) for step in range(num_steps))

    def _rise(self, fraction: float) -> float:
        return (self.guidance_scale - 1) * fraction

    def _windowed(self, ratio: float, window_end: float) -> float:
        start = _DEFAULT_WINDOW_START[self.guidance_schedule] if self.window_start is None else self.window_start
        if start <= ratio <= window_end:
            return self.guidance_scale
        return 1.0001 if self.min_guidance_scale == 1 else self.min_guidance_scale


def guide(logits: Float[Tensor, "twice ..."], scale: float) -> Float[Tensor, "b ..."]:
    """Return guided logits from a batch whose first half is conditional and whose second half is not."""
    conditional, null = logits.chunk(2)
    return null + (conditional - null) * scale
