"""Texts as ids: bytes with a begin and an end, padded or packed into rows; and the bytes that a generation gives back.

Letters: `b` rows, `n` ids of a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: Ids of text are its UTF-8 bytes. These two values occur in no UTF-8 text.
BEGIN, END = 254, 255
NUM_BYTES = 256

#: A text as callers give it.
Text = str | bytes


@dataclasses.dataclass(frozen=True)
class Texts:
    """Rows of ids: a text in each, with padding behind, or several texts packed into one row. The sibling of `TokenPyramid`.

    Attributes:
        ids: Ids `(b, n)`, int64.
        lengths: Number of ids of each row that are no padding, `(b,)`, int64, 1 to n; None where there is no padding.
        starts: True where a text of a packed row begins, `(b, n)`, bool; no text sees another. None for one text per row.

    Raises:
        ValueError: If a shape or a number format is wrong.
    """

    ids: Tensor
    lengths: Tensor | None = None
    starts: Tensor | None = None

    def __post_init__(self) -> None:
        check_rows(self.ids, self.lengths, self.starts)

    @property
    def is_scored(self) -> Tensor:
        """Which ids are to be predicted, `(b, n)`: no padding, and not the first id of a packed text."""
        found = valid_ids(self.ids, self.lengths)
        return found if self.starts is None else found & ~self.starts

    @classmethod
    def of(cls, texts: Sequence[Text], *, end: bool = False) -> Texts:
        """Return one row per text: `BEGIN`, its bytes, with `end` also `END`, then padding."""
        rows = [torch.tensor([BEGIN, *to_bytes(text), *([END] if end else [])]) for text in texts]
        if not rows:
            raise ValueError("texts is empty, expected at least one text")
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return cls(ids, torch.tensor([len(row) for row in rows]))


def to_bytes(text: Any) -> bytes:
    """Return a text as bytes, those of a `str` in UTF-8.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(text, str):
        return text.encode()
    if not isinstance(text, bytes):
        raise TypeError(f"a text is of type {type(text).__name__}, expected str or bytes")
    return text


def check_rows(ids: Tensor, lengths: Tensor | None, starts: Tensor | None) -> None:
    """Check the shapes and number formats of rows of ids.

    Raises:
        ValueError: Naming the argument.
    """
    if ids.ndim != 2 or ids.dtype != torch.int64:
        raise ValueError(f"ids has shape {tuple(ids.shape)} and dtype {ids.dtype}, expected (b, n) int64")
    if lengths is not None and (lengths.shape != ids.shape[:1] or lengths.dtype != torch.int64):
        raise ValueError(
            f"lengths has shape {tuple(lengths.shape)} and dtype {lengths.dtype}, expected ({len(ids)},) int64"
        )
    if starts is not None and (starts.shape != ids.shape or starts.dtype != torch.bool):
        raise ValueError(
            f"starts has shape {tuple(starts.shape)} and dtype {starts.dtype}, expected {tuple(ids.shape)} bool"
        )


def valid_ids(ids: Tensor, lengths: Tensor | None) -> Tensor:
    """Return which ids are no padding, `(b, n)`."""
    if lengths is None:
        return torch.ones_like(ids, dtype=torch.bool)
    return torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]


class StopWatch:
    """The bytes of one growing text, cut before the first stop string. Bytes that may be the start of one are held back.

    Args:
        stops: Strings that end the text.
    """

    def __init__(self, stops: Sequence[Text]) -> None:
        self._stops = [to_bytes(stop) for stop in stops]
        self._held = b""
        self.has_ended = False

    def push(self, symbol: int) -> bytes:
        """Take the next id; return the bytes that are certain by now. `BEGIN` and `END` end the text."""
        if self.has_ended:
            return b""
        if symbol in (BEGIN, END):
            return self.finish()
        self._held += bytes([symbol])
        if any(self._held.endswith(stop) for stop in self._stops):
            self.has_ended = True
            return self._held[: min(self._held.index(s) for s in self._stops if self._held.endswith(s))]
        kept = max((self._overlap(stop) for stop in self._stops), default=0)
        certain, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return certain

    def finish(self) -> bytes:
        """End the text; return what was held back."""
        held, self._held, self.has_ended = b"" if self.has_ended else self._held, b"", True
        return held

    def _overlap(self, stop: bytes) -> int:
        """Return how many of the last bytes are the beginning of a stop string."""
        sizes = range(min(len(stop) - 1, len(self._held)), 0, -1)
        return next((size for size in sizes if self._held.endswith(stop[:size])), 0)
