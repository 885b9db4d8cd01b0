"""Constant tensors of models that keep their own precision: `Constants` are in no checkpoint, a `Table` is.

A buffer would follow `.to(torch.bfloat16)`, which ruins rotary tables, and would stay on the meta device when a model is built there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: Mean and deviation of ImageNet's pixels in [0, 1], by channel.
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Constants:
    """Named tensors that are moved once to each device they are asked for on, and keep their dtype.

    Make them on the CPU, whatever the default device is, so that a model built on the meta device has them too.
    """

    def __init__(self, **tensors: Tensor) -> None:
        for name, tensor in tensors.items():
            if tensor.device.type != "cpu":
                raise ValueError(f"constant {name!r} is on {tensor.device}, expected the CPU")
        self._by_device: dict[torch.device, dict[str, Tensor]] = {torch.device("cpu"): tensors}

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """Return the tensors on `device`, by name; do not write to them."""
        if device not in self._by_device:
            # A tensor made in inference mode could not take part in a later training step.
            with torch.inference_mode(False):
                source = self._by_device[torch.device("cpu")]
                self._by_device[device] = {name: tensor.to(device) for name, tensor in source.items()}
        return self._by_device[device]


def channel_statistics(mean: Sequence[float], std: Sequence[float]) -> Constants:
    """Return "mean" and "std" of the channels of images, `(c, 1, 1)` each."""
    return Constants(
        **{name: torch.tensor(x, device="cpu")[:, None, None] for name, x in (("mean", mean), ("std", std))}
    )


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
