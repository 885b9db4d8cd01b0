"""Read from its timesteps which sampling step a transformer is in, so that no call has to be counted."""

from __future__ import annotations

import torch
from torch import Tensor


class StepCounter:
    """Counts sampling steps: a new timestep is the next step, the same one again is another pass of the same step.

    So guidance in two passes, guidance in one batch and no guidance count alike. Samplers go one way through time: a
    timestep against that way starts a new video. After a one-step video, the next video's first timestep looks like a second
    step unless it is the same number; call `reset` between them. Steps whose timesteps a scheduler rounds to the same number
    count as one.

    Attributes:
        warmup_steps: First steps with dense attention.
        step: Current step, from 0; -1 before the first.
        is_dense: Whether the current step is a dense one. Compiled code looks at this alone.
        is_manual: Whether steps come from `set_step` alone.
    """

    def __init__(self, warmup_steps: int, *, is_needed: bool = False) -> None:
        """Start before the first step.

        Args:
            warmup_steps: See the class.
            is_needed: Whether to count steps even if none is dense (for statistics).
        """
        self.warmup_steps = warmup_steps
        self.is_manual = False
        self._is_needed = is_needed or warmup_steps > 0
        self.reset()

    @property
    def reads_timesteps(self) -> bool:
        """Whether `observe` has to be called: it waits for the device, and splits a compiled graph."""
        return self._is_needed and not self.is_manual

    def reset(self) -> None:
        """Start before the first step of a new video."""
        self._last: float | None = None
        self._direction = 0
        self._move_to(-1)

    def set_step(self, step: int) -> None:
        """Say which step comes next, from 0; from then on timesteps are not read.

        Raises:
            ValueError: If `step` is negative.
        """
        if step < 0:
            raise ValueError(f"step is {step}, expected the number of a sampling step, from 0")
        self.is_manual = True
        self._move_to(step)

    @torch.compiler.disable
    def observe(self, timestep: Tensor | float | int) -> None:
        """Take the timestep of one pass; where tokens have timesteps of their own, the largest counts."""
        now = float(timestep.max() if isinstance(timestep, Tensor) else timestep)
        if self._last is None:
            self._move_to(0)
        elif now != self._last:
            direction = 1 if now > self._last else -1
            is_next = self._direction in (0, direction)
            self._direction = direction if is_next else 0
            self._move_to(self.step + 1 if is_next else 0)
        self._last = now

    def _move_to(self, step: int) -> None:
        self.step = step
        self.is_dense = max(step, 0) < self.warmup_steps
