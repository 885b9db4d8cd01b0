"""Logits of the next id: of whole sequences in one pass, and of growing ones id by id.

Letters: `b` batch, `r` rows of logits, `v` vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.nn.running.precision import widen

if TYPE_CHECKING:
    from hiergen.generators.sequences.base import SequenceModel


class Prediction(NamedTuple):
    """What a pass over whole sequences gives.

    Attributes:
        logits: A row of logits per position of the input, `(b, r, v)`.
        losses: Scalars that are added to the cross-entropy, weighted already, by name.
        log: Scalars for the log alone, by name.
        unscored: Number of leading rows that predict nothing: their logits are 0.
    """

    logits: Tensor
    losses: dict[str, Tensor]
    log: dict[str, Tensor]
    unscored: int = 0


class NextLogits:
    """The logits of the next id of growing sequences, with the model's cache or by reading all again."""

    def __init__(
        self,
        model: SequenceModel,
        ids: Tensor,
        lengths: Tensor | None,
        condition: Tensor | None,
        num_new: int,
        use_cache: bool,
    ) -> None:
        self._model, self._condition = model, condition
        self._cache = model.start_cache(len(ids), ids.shape[1] + num_new) if use_cache else None
        self._lengths = torch.full_like(ids[:, 0], ids.shape[1]) if lengths is None and ids.shape[1] else lengths
        self._ids = ids
        if self._cache is not None:
            self.logits = widen(model.prefill(ids, lengths, self._cache, condition))
        else:
            self._read_all()

    def push(self, ids: Tensor) -> None:
        """Append an id to every sequence."""
        if self._cache is not None:
            self.logits = widen(self._model.step(ids, self._cache))
            return
        if self._lengths is None:
            self._lengths = torch.zeros_like(ids)
        longest = int(self._lengths.max()) + 1
        self._ids = F.pad(self._ids[:, :longest], (0, max(longest - self._ids.shape[1], 0)))
        self._ids = self._ids.scatter(1, self._lengths[:, None], ids[:, None])
        self._lengths = self._lengths + 1
        self._read_all()

    def _read_all(self) -> None:
        logits = self._model(self._ids, self._lengths, self._condition)
        last = logits.shape[1] - 1 if self._lengths is None else self._lengths - int(self._condition is None)
        index = torch.as_tensor(last, device=logits.device).expand(len(logits))
        self.logits = widen(logits[torch.arange(len(logits), device=logits.device), index])
