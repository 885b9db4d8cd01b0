"""Constant tensors that a checkpoint holds: they follow the model's device, never its precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Table(nn.Module):
    """A constant tensor, `value`, that is saved and moves with the model but keeps its own dtype.

    A plain buffer is cast by `model.to(torch.bfloat16)`; angles and positions must not be. Tables that no checkpoint holds are
    `hiergen.nn.constants.Constants`.

    Args:
        value: The tensor.
    """

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = self.value
        super()._apply(fn, recurse)
        if self.value.dtype != kept.dtype:
            self.value = kept.to(self.value.device)
        return self

    def forward(self) -> Tensor:
        """Return the tensor."""
        return self.value
