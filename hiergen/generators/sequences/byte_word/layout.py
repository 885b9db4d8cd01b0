"""Which byte belongs to which word, for rows of a batch: the form in which the model reads words.

Letters: `b` rows, `n` symbols, `w` words, `s` symbols of the longest word.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hiergen.generators.sequences.byte_word.words import word_starts


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordLayout:
    """Words of every row, in order; behind a row's own words are empty ones.

    Attributes:
        word: Number of the word of each symbol, `(b, n)`.
        members: Places of the symbols of each word, `(b, w, s)`.
        is_member: Which of these are symbols of the word, `(b, w, s)`; the first always is.
        text: Number of the packed text of each symbol, `(b, n)`.
        place: Place of each symbol in its text, `(b, n)`.
        word_text: Number of the text of each word, `(b, w)`.
        word_place: Place of each word in its text, `(b, w)`.
        counts: Number of words of each row, padding not counted, `(b,)`.
    """

    word: Int[Tensor, "b n"]
    members: Int[Tensor, "b w s"]
    is_member: Bool[Tensor, "b w s"]
    text: Int[Tensor, "b n"]
    place: Int[Tensor, "b n"]
    word_text: Int[Tensor, "b w"]
    word_place: Int[Tensor, "b w"]
    counts: Int[Tensor, " b"]

    @classmethod
    def of(
        cls, words: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], lengths: Sequence[int], size: int
    ) -> WordLayout:
        """Return that of rows of `size` symbols.

        Args:
            words: Places at which a word of each row begins, the first is 0.
            texts: Places at which a text of each row begins, the first is 0.
            lengths: Number of symbols of each row that are no padding.
            size: Number of symbols of a row.
        """
        # Padding is a word of single symbols that no other word's output depends on.
        starts = [[*row, *range(length, size)] for row, length in zip(words, lengths, strict=True)]
        ends = [[*row[1:], size] for row in starts]
        most = max(map(len, starts))
        first = _padded(starts, most)
        longest = max(end - start for row in zip(starts, ends, strict=True) for start, end in zip(*row, strict=True))
        inside = torch.arange(longest)
        is_member = inside < (_padded(ends, most) - first).clamp(min=1)[..., None]
        members = (first[..., None] + inside).clamp(max=size - 1)
        word, text = _numbers(starts, size), _numbers(texts, size)
        text_start = torch.tensor([_starts_of(row, size) for row in texts])
        word_text = text.gather(1, first)
        # The number of the first word of each word's text.
        begins = word.gather(1, text_start.gather(1, first))
        return cls(
            word=word,
            members=members,
            is_member=is_member,
            text=text,
            place=torch.arange(size) - text_start,
            word_text=word_text,
            word_place=torch.arange(most) - begins,
            counts=torch.tensor([len(row) for row in words]),
        )

    def to(self, device: torch.device) -> WordLayout:
        """Return the layout on another device."""
        moved = {field.name: getattr(self, field.name).to(device) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **moved)


def starts_in_rows(
    ids: Int[Tensor, "b n"], lengths: Sequence[int], texts: Sequence[Sequence[int]], *, max_bytes: int
) -> list[list[int]]:
    """Return where the words of each row begin, by the rule of `words`; no word goes beyond a text."""
    found = []
    for row, length, begins in zip(ids.tolist(), lengths, texts, strict=True):
        ends = [min(place, length) for place in (*begins, length)]
        found.append(
            [
                start + place
                for start, end in itertools.pairwise(ends)
                for place in word_starts(bytes(row[start:end]), max_bytes=max_bytes)
            ]
        )
    return found


def _padded(rows: Sequence[Sequence[int]], count: int) -> Tensor:
    return torch.tensor([[*row, *[row[-1]] * (count - len(row))] for row in rows])


def _numbers(starts: Sequence[Sequence[int]], size: int) -> Tensor:
    marks = torch.zeros(len(starts), size, dtype=torch.int64)
    for row, places in enumerate(starts):
        marks[row, list(places)] = 1
    return marks.cumsum(dim=1) - 1


def _starts_of(begins: Sequence[int], size: int) -> list[int]:
    ends = [*begins[1:], size]
    return [start for start, end in zip(begins, ends, strict=True) for _ in range(start, end)]
