"""Classifier-free guidance of all generators: a prediction is moved away from the one that is made without the condition.

    guided = null + w (conditional - null),    w = scale_at(r)

r runs from 0 to 1 over a generation. What it counts is said by the settings of the family: the steps done (`LevelAR`), the levels done
(`NextScaleAR`), the tokens known (`MaskedAR`), the time of the flow (`FlowTransformer`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hiergen.checked import Checked, NotNegative, Range, Share

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
    "official",
    "paper",
    "power_cosine",
    "muse",
    "muse_linear",
]

#: What a prediction is moved away from.
GuidedAgainst = Literal["null", "parent"]

# HAR's official sampler lifts schedules that start or end at 1 by this much; kept so that results agree.
_LIFT = 1e-4
# Schedules whose weight counts from the conditional prediction.
_FROM_CONDITIONAL = ("muse", "muse_linear")
_DEFAULT_WINDOW_START = {"rectangular": 0.05, "step": 0.25}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceSettings(Checked):
    """How strongly each step of a generation follows the condition.

    With `s` the `guidance_scale`, `m` the `min_guidance_scale` and r from 0 (start) to 1 (end), the scale is

    - "constant": s;
    - "linear": rises from 1 to s, 1 + (s - 1) r; "linear_re": falls from s to 1;
    - "linear_constant": rises from 1 at r = 0 to s at r = `peak`, then s;
    - "triangular": rises from 1 to s at r = `peak`, then falls to 1;
    - "rectangular": s where `window_start` <= r <= `window_end`, else m;
    - "step": s where r >= `window_start`, else m;
    - "cosine": rises from 1 to s as 1 + (s - 1)(1 - cos(pi r)) / 2; "cosine_re": falls from s to 1 in the same way;
    - "official": 1 + (s - 1) r, as in the released MAR program, and in VAR's with s = 1 + cfg;
    - "paper": s r, as in MAR-3D's paper. It is no guidance only where it passes 1, so it acts at s = 1 too;
    - "power_cosine": 1 + (s - 1)(1 - cos(pi r^p)) / 2 with p the `guidance_power`; 0 is constant. RAR, TiTok-S-128;
    - "muse": 1 + s, and "muse_linear": 1 + s r. They count from the conditional prediction, conditional + s (conditional - null), as
      TiTok's other generators do, so 0 turns them off.

    "linear", "linear_re" and "triangular" are 1e-4 above this formula, as in HAR's official sampler.

    Attributes:
        guidance_scale: Weight s of the condition in `null + scale * (conditional - null)`; 1 turns guidance off, and with it half of
            the work.
        guidance_schedule: How the weight changes over a generation: one of the names above.
        min_guidance_scale: Weight m outside of the window. Exactly 1 stands for 1.0001, as in HAR's official sampler.
        window_start: Start of the window, 0 to 1; None is the schedule's default (rectangular 0.05, step 0.25).
        window_end: End of the rectangular window, 0 to 1.
        guidance_power: Exponent p of "power_cosine": a larger one guides later.
        guidance_against: What a prediction is moved away from: "null", the one made without the condition; or, for classes with a
            hierarchy, "parent", the one for the class one level above, which keeps the coarse class and sharpens the fine one.
        peak: Where "linear_constant" and "triangular" reach s, above 0 and up to 1.

    Raises:
        ValueError: If a value is out of its range.

    Source:
        ResTok, arXiv:2601.03955, official sampler (its two cosine schedules do not run; their definition is ours); MAR,
        arXiv:2406.11838, official program; MAR-3D, arXiv:2503.20519; TiTok, arXiv:2406.07550, and RAR, arXiv:2411.00776, official programs.
    """

    guidance_scale: float = 1.0
    guidance_schedule: GuidanceSchedule = "constant"
    min_guidance_scale: float = 1.0001
    window_start: Share | None = None
    window_end: Share = 1.0
    peak: Annotated[float, Range(0, 1, excludes_low=True)] = 0.5
    guidance_power: NotNegative = 3.0
    guidance_against: GuidedAgainst = "null"

    @property
    def is_guided(self) -> bool:
        """Whether any step of a generation is guided."""
        if self.guidance_schedule in _FROM_CONDITIONAL:
            return self.guidance_scale != 0
        return self.guidance_scale != 1 or self.guidance_schedule == "paper"

    def scale_at(self, done: float | int, total: float | int = 1) -> float:
        """Return the scale at r = done / total, 0 to 1."""
        rise, r = self.guidance_scale - 1, done / total
        match self.guidance_schedule:
            case "linear":
                return 1 + rise * r + _LIFT
            case "linear_re":
                return 1 + rise * (1 - r) + _LIFT
            case "linear_constant":
                return 1 + rise * min(r / self.peak, 1.0)
            case "triangular":
                return 1 + rise * (r / self.peak if r <= self.peak else (1 - r) / (1 - self.peak)) + _LIFT
            case "rectangular":
                return self._windowed(r, self.window_end)
            case "step":
                return self._windowed(r, 1.0)
            case "cosine":
                return 1 + rise * ((1 - math.cos(math.pi * r)) / 2)
            case "cosine_re":
                return 1 + rise * ((1 + math.cos(math.pi * r)) / 2)
            case "official":
                # Multiplied before it is divided, as in the released program: published samples depend on the last digit.
                return 1 + rise * done / total
            case "paper":
                return self.guidance_scale * done / total
            case "power_cosine":
                return 1 + rise * ((1 - math.cos(math.pi * r**self.guidance_power)) / 2)
            case "muse" | "muse_linear":
                return 1 + self.guidance_scale * (r if self.guidance_schedule == "muse_linear" else 1)
            case _:
                return self.guidance_scale

    def guide(
        self,
        conditional: Float[Tensor, "*rows c"],
        null: Float[Tensor, "*rows c"],
        done: float | int,
        total: float | int,
    ) -> Float[Tensor, "*rows c"]:
        """Return the guided prediction at r = done / total, added up in the order of the schedule's source."""
        scale = self.scale_at(done, total)
        if self.guidance_schedule in _FROM_CONDITIONAL:
            return conditional + (scale - 1) * (conditional - null)
        return guide(conditional, null, scale)

    def scales(self, num_steps: int) -> tuple[float, ...]:
        """Return the scale of every step of a schedule of `num_steps` steps: step k is at r = k / (num_steps - 1)."""
        return tuple(self.scale_at(step / max(num_steps - 1, 1)) for step in range(num_steps))

    def _windowed(self, r: float, window_end: float) -> float:
        start = _DEFAULT_WINDOW_START[self.guidance_schedule] if self.window_start is None else self.window_start
        if start <= r <= window_end:
            return self.guidance_scale
        return 1.0001 if self.min_guidance_scale == 1 else self.min_guidance_scale


def guide(
    conditional: Float[Tensor, "*rows c"],
    null: Float[Tensor, "*rows c"],
    scale: float | Tensor,
    *,
    num_channels: int | None = None,
) -> Float[Tensor, "*rows c"]:
    """Return null + scale (conditional - null).

    Args:
        conditional: Prediction (logits, noise or velocity) with the condition.
        null: Prediction without it.
        scale: Weight of the condition; 1 gives the conditional prediction.
        num_channels: Number of leading channels that are guided, the others stay conditional; None for all.
    """
    guided = null + scale * (conditional - null)
    if num_channels is None:
        return guided
    return torch.cat((guided[..., :num_channels], conditional[..., num_channels:]), dim=-1)
