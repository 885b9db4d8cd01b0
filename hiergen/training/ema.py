"""The exponential moving average (EMA) of a model's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


class Average:
    """An average whose decay is ramped as min(decay, (1 + s) / (10 + s)) at update s = 1, 2, ...; the very first update copies.

    Bit for bit what `diffusers.training_utils.EMAModel` gives by default, whose module takes longer to import than PyTorch.

    Args:
        parameters: Parameters of the model; frozen ones are copied at every update.
        decay: Largest decay.

    Attributes:
        shadow: The averages, in the order of the parameters.
        updates: Number of updates so far.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, decay: float) -> None:
        self.decay = decay
        self.shadow = [parameter.detach().clone() for parameter in parameters]
        self.updates = 0

    @torch.no_grad()
    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take one step towards the parameters."""
        step, self.updates = self.updates, self.updates + 1
        decay = 0.0 if step == 0 else min(self.decay, (1 + step) / (10 + step))
        pairs = list(zip(self.shadow, parameters, strict=True))
        frozen = [(shadow, parameter) for shadow, parameter in pairs if not parameter.requires_grad]
        trained = [(shadow, parameter) for shadow, parameter in pairs if parameter.requires_grad]
        for shadow, parameter in frozen:
            shadow.copy_(parameter)
        shadows = [shadow for shadow, _ in trained]
        weights: list[Tensor] = [parameter for _, parameter in trained]
        torch._foreach_sub_(shadows, torch._foreach_sub(shadows, weights), alpha=1 - decay)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for shadow, parameter in zip(self.shadow, model.parameters(), strict=True):
            weight = parameter.detach().clone()
            parameter.copy_(shadow)
            shadow.copy_(weight)

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, `model` has the averages for weights; they change places, so that one tensor is held twice at a time."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)
