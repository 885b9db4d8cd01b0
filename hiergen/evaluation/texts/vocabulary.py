"""A vocabulary of whole words over bytes: what models of bytes are compared with where texts are misspelled."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from hiergen.data.text.dataset import TextSet
from hiergen.data.text.sources import Documents
from hiergen.generators.sequences.byte_word.words import word_starts
from hiergen.generators.sequences.texts import BEGIN, END, NUM_BYTES


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Ids of bytes, and behind them of the commonest words of some texts. A word that is not among them is spelled in bytes.

    Attributes:
        ids: Id of each word, from 256.
    """

    ids: dict[bytes, int]

    @classmethod
    def of(cls, texts: Iterable[bytes], size: int) -> Vocabulary:
        """Return the vocabulary of the commonest words of more than one byte; `size` counts bytes and words.

        Raises:
            ValueError: If `size` leaves no room for a word.
        """
        if size <= NUM_BYTES:
            raise ValueError(f"size is {size}, expected more than the {NUM_BYTES} bytes")
        counts = collections.Counter(word for text in texts for word in _words(text) if len(word) > 1)
        # Words of equal count in the order of their bytes: the same ids every time.
        common = sorted(counts, key=lambda word: (-counts[word], word))[: size - NUM_BYTES]
        return cls({word: number for number, word in enumerate(common, start=NUM_BYTES)})

    @property
    def sizes(self) -> Tensor:
        """Bytes of each id, `(v,)`."""
        return torch.tensor([1] * NUM_BYTES + [len(word) for word in self.ids])

    def encode(self, text: bytes) -> list[int]:
        """Return the ids of a text."""
        return [id for word in _words(text) for id in ([self.ids[word]] if word in self.ids else word)]


def _words(text: bytes) -> list[bytes]:
    ends = [*word_starts(text), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(ends)]


class PieceSet(TextSet):
    """Documents packed into rows of a vocabulary's ids; everything else as in `TextSet`."""

    def __init__(self, documents: Documents, vocabulary: Vocabulary, *, length: int, shifts: bool = True) -> None:
        super().__init__(documents, length=length, shifts=shifts)
        rows = [[BEGIN, *vocabulary.encode(text), END] for text in documents.texts]
        ends = list(itertools.accumulate(map(len, rows)))
        self._ids = torch.tensor([id for row in rows for id in row], dtype=torch.int32)
        self._starts = torch.zeros(len(self._ids), dtype=torch.bool)
        self._starts[[0, *ends[:-1]]] = True

    @property
    def bytes_per_id(self) -> float:
        """Bytes of all documents, and their begins and ends, over ids."""
        return (self.num_bytes + 2 * len(self.documents.texts)) / len(self._ids)
