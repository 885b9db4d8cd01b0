"""Tables and masks that a model computes once and never stores: neither parameters nor buffers.

A buffer would follow `.to(torch.bfloat16)`, which ruins rotary tables, and would stay on the meta device when a model is built there.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
