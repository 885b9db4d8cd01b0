"""Constant tensors of a model: they follow its device, never its precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Table(nn.Module):
    """A constant tensor, `value`, that moves with the model but keeps its own dtype.

    A plain buffer is cast by `model.to(torch.bfloat16)`; angles, positions and statistics must not be.

    Args:
        value: The tensor.
        is_saved: Whether it is part of the state dict. Saved tables can be replaced by those of a checkpoint.
    """

    value: Tensor

    def __init__(self, value: Tensor, *, is_saved: bool = False) -> None:
        super().__init__()
        self.register_buffer("value", value, persistent=is_saved)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = self.value
        super()._apply(fn, recurse)
        if self.value.dtype != kept.dtype:
            self.value = kept.to(self.value.device)
        return self

    def forward(self, *_: Any) -> Tensor:
        """Return the tensor."""
        return self.value
