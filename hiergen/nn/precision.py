"""Switching autocast off where a computation must keep its own precision."""

from __future__ import annotations

import contextlib

import torch


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which operations on `device` keep the dtypes of their inputs.

    Device types that have no autocast (e.g. "meta") get a context that does nothing.
    """
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
