"""Which moment of a run was the best, by a named entry of its log."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from hiergen.training.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Best:
    """The best value so far.

    Attributes:
        name: Name of the entry of the log.
        value: Value of the entry.
        samples_seen: Position in the run.
    """

    name: str
    value: float
    samples_seen: int

    @classmethod
    def restore(cls, saved: Mapping[str, Any] | None, config: TrainConfig) -> Best | None:
        """Return what a checkpoint saved, or None if the run now watches another entry."""
        return cls(**saved) if saved is not None and saved["name"] == config.keep_best else None


def check_best(names: Iterable[str], config: TrainConfig) -> None:
    """Raise if the entry that a run watches is not in its log, so that a misspelled name is noticed at the first line.

    Raises:
        ValueError: Naming the entries that are.
    """
    known = sorted(names)
    if config.keep_best not in known:
        raise ValueError(f"keep_best is {config.keep_best!r}, the log of this run has {', '.join(known)}")


def improvement(
    config: TrainConfig, lines: Iterable[Mapping[str, float]], *, since: int, samples_seen: int, best: Best | None
) -> Best | None:
    """Return the new best if the mean of the watched entry over the lines after `since` samples is better than before.

    It is a function of the log alone, so a resumed run keeps the same models as the uninterrupted one. A mean that is not finite, and
    an interval without a line that has the entry, is never better.
    """
    name = config.keep_best
    if name is None:
        return None
    # A line that was read back has null where a value was not finite.
    values = [
        math.nan if line[name] is None else line[name] for line in lines if line["samples"] > since and name in line
    ]
    if not values:
        return None
    value = math.fsum(values) / len(values)
    sign = 1 if config.best_is == "lowest" else -1
    if not math.isfinite(value) or (best is not None and sign * value >= sign * best.value):
        return None
    return Best(name, value, samples_seen)
