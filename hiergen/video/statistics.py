"""Density and time of each call of attention, kept only on request, because measuring costs time."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class CallStatistics:
    """One call of one attention layer.

    Attributes:
        step: Sampling step, from 0.
        layer: Number of the self-attention layer in the model, from 0.
        density: Share of the dense product that was computed, mean over batch and heads; 1 if the call was dense.
        seconds: Time of the whole attention layer, projections and plan included; the first call may include compiling.
    """

    step: int
    layer: int
    density: float
    seconds: float


class Recorder:
    """Collects `CallStatistics` without waiting for the device until they are read."""

    def __init__(self) -> None:
        self._calls: list[tuple[int, int, Tensor | float, Any, Any]] = []

    @torch.compiler.disable
    def start(self, device: torch.device) -> Any:
        """Return a mark in time."""
        return _mark(device)

    @torch.compiler.disable
    def stop(self, mark: Any, device: torch.device, *, step: int, layer: int, density: Tensor | float) -> None:
        """Record a call that began at `mark`."""
        self._calls.append((step, layer, density, mark, _mark(device)))

    def read(self) -> list[CallStatistics]:
        """Return the calls so far, in order; waits for the device."""
        return [
            CallStatistics(step, layer, float(density), _seconds_between(start, end))
            for step, layer, density, start, end in self._calls
        ]


def _mark(device: torch.device) -> Any:
    if device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event
    return time.perf_counter()


def _seconds_between(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1000
