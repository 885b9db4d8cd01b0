"""The half of gradient checkpointing that diffusers leaves to a model: calling the blocks through its function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class CheckpointedModule(nn.Module):
    """A module that runs its parts through `ModelMixin.enable_gradient_checkpointing`.

    Attributes:
        gradient_checkpointing: Set by diffusers; True recomputes activations in the backward pass.
    """

    gradient_checkpointing: bool = False
    _gradient_checkpointing_func: Callable[..., Any] | None = None

    def run(self, part: Callable[..., Any], *inputs: Any) -> Any:
        """Return `part(*inputs)`, storing no activations of `part` if checkpointing is on and gradients are."""
        if self.gradient_checkpointing and self._gradient_checkpointing_func is not None and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(part, *inputs)
        return part(*inputs)
