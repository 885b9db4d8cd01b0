"""Contexts that change how a model computes: without dropout, without autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode inside the context and back in the mode that it was in afterwards, also after an error."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which operations on `device` keep the dtypes of their inputs.

    Device types that have no autocast (e.g. "meta") get a context that does nothing.
    """
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
