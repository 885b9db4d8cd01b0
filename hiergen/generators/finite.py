"""Finding out that a model computes NaN or infinity, without waiting for the device at every step."""

from __future__ import annotations

import torch
from torch import Tensor


class FiniteSteps:
    """Notes of each step of a generation whether its values are finite; `check` looks at all of them at once.

    Args:
        model: Name of the model, for the error.
        what: What the values are, for the error.
    """

    def __init__(self, model: str, what: str) -> None:
        self._model, self._what = model, what
        self._places: list[str] = []
        self._flags: list[Tensor] = []

    def note(self, values: Tensor, place: str) -> None:
        """Note the values of a step, which the error calls by its `place`."""
        self._places.append(place)
        self._flags.append(torch.isfinite(values).all())

    def check(self) -> None:
        """Check all steps; while a CUDA graph is captured the device cannot be asked, and nothing is.

        Raises:
            FloatingPointError: If a step was not finite, naming the first.
        """
        finite = torch.stack(self._flags)
        if finite.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        if not bool(finite.all()):
            place = self._places[int((~finite).int().argmax())]
            raise FloatingPointError(
                f"{self._model} gives NaN or infinity: {self._what} at {place}; "
                "its weights are damaged, or too large for their number format"
            )
