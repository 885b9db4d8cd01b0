"""What generators are told to make, and how they learn to do without: conditions, their checks, and dropping them for guidance.

Letters: `b` batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hiergen.seeding import Rng, draw_uniform

#: Class labels `(b,)`; or features `(b, n, channels)` of one frozen encoder, or of several in a list.
Condition = Tensor | Sequence[Tensor]


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Check class labels: int64 `(b,)`, each 0 to `num_classes - 1`.

    Raises:
        ValueError: If the shape or a label is out of range (a CPU check: call it outside loops).
        TypeError: If they are not int64.
    """
    if labels.dtype != torch.int64:
        raise TypeError(f"class labels have dtype {labels.dtype}, expected int64")
    if labels.ndim != 1:
        raise ValueError(f"class labels have shape {tuple(labels.shape)}, expected (b,)")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"class labels span {int(labels.min())} to {int(labels.max())}, expected 0 to {num_classes - 1}"
        )


def draw_dropped(batch: int, probability: float, *, rng: Rng | None, device: torch.device) -> Bool[Tensor, " b"]:
    """Return which samples of a training step lose their condition: one uniform number per sample is drawn and compared."""
    return draw_uniform((batch,), rng=rng, device=device) < probability


def drop_labels(
    labels: Int[Tensor, " b"], null_label: int, probability: float, *, rng: Rng | None
) -> Int[Tensor, " b"]:
    """Return the labels, each replaced by "no label" with some probability; at probability 0 nothing is drawn."""
    if probability <= 0:
        return labels
    return labels.masked_fill(draw_dropped(len(labels), probability, rng=rng, device=labels.device), null_label)


def with_null_labels(labels: Int[Tensor, " b"], null_label: int) -> Int[Tensor, " twice"]:
    """Return the labels and as many times "no label" behind them: what one pass for guidance reads."""
    return torch.cat((labels, torch.full_like(labels, null_label)))
