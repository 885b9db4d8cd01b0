"""Keeping a computation at its own precision: autocast off, and float32 at least."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


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


class KeepsFloat32(nn.Module):
    """A module whose weights stay float32, or wider, whatever dtype the model around it is moved to.

    `from_pretrained(dtype=)` leaves the modules of `_keep_in_fp32_modules` wide, but `.to(torch.bfloat16)` and `.half()` would not.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def wide(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            is_narrowed = tensor.is_floating_point() and moved.element_size() < min(tensor.element_size(), 4)
            return tensor.to(moved.device) if is_narrowed else moved

        return super()._apply(wide, recurse)
