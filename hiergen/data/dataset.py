"""The interface of datasets: samples by index, each a pure function of (seed, visit, index)."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

#: (index, visit): the number of a sample, and a number that each of its visits has for itself, such as the epoch.
Sample = tuple[int, int]


class Dataset(abc.ABC):
    """What the training loop reads: samples by index, the same whatever was read before.

    The `fingerprint` changes when the data change; caches and checkpoints are tied to it.

    Attributes:
        unit: Name of one sample, for those who read what was found.
    """

    unit: ClassVar[str] = "sample"

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abc.abstractmethod
    def batch(self, samples: Sequence[Sample], *, seed: int) -> dict[str, Tensor]:
        """Return samples, stacked; the augmentation of each is a function of (seed, visit, index) alone."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Digits that change when the data change."""

    def content(self, *, is_whole: bool = False) -> str | None:
        """Return digits that change when data change that the fingerprint does not cover; None if it covers all.

        Args:
            is_whole: Read all data; otherwise only the places that `hiergen.data.files.content` chooses.
        """
        return None
