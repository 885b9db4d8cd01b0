"""Keeping a computation at its own precision: autocast off, and float32 at least."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which operations on `device` keep the dtypes of their inputs.

    Device types that have no autocast (e.g. "meta") get a context that does nothing.
    """
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def widen(x: Tensor) -> Tensor:
    """Return `x` in float32, or as it is where it is float64."""
    return x if x.dtype == torch.float64 else x.float()
