"""Texts as rows of ids: all documents in one line, cut into rows of one length.

Letters: `n` ids of a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from hiergen.data.dataset import Dataset, Sample
from hiergen.data.files.content import content_digest
from hiergen.data.text.config import TextDataConfig
from hiergen.data.text.sources import Documents, open_documents
from hiergen.generators.sequences.texts import BEGIN, END
from hiergen.seeding import derive_seed


class TextSet(Dataset):
    """Documents packed into rows. A document is `BEGIN`, its bytes, and one `END` or, up to a multiple of `multiple` ids, some more.

    A batch holds "ids" `(b, n)`, int64, and "starts" `(b, n)`, True where a document begins; the latter only if documents are not to see
    each other. The last row goes on with the first document.

    Args:
        documents: The documents.
        length: Ids of a row.
        multiple: Documents begin at multiples of so many ids, as models of blocks need it; `length` must be one too.
        masks_texts: Whether documents of one row are kept apart.
        shifts: Whether the rows of every epoch after the first are cut at other places.

    Raises:
        ValueError: If there is no document, or `length` is no multiple of `multiple`.
    """

    unit = "text row"

    def __init__(
        self,
        documents: Documents,
        *,
        length: int,
        multiple: int = 1,
        masks_texts: bool = True,
        shifts: bool = True,
    ) -> None:
        if not documents.texts:
            raise ValueError("documents holds no text, expected at least one")
        if length < 2 or length % multiple:
            raise ValueError(f"length is {length}, expected a multiple of {multiple}, at least 2")
        self.documents, self.length = documents, length
        self._multiple, self._masks_texts, self._shifts = multiple, masks_texts, shifts
        rows, begins, place = [], [], 0
        for text in documents.texts:
            ids = bytes([BEGIN]) + text + bytes([END])
            ids += bytes([END]) * (-len(ids) % multiple)
            rows.append(ids)
            begins.append(place)
            place += len(ids)
        self._ids = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8)
        self._starts = torch.zeros(place, dtype=torch.bool)
        self._starts[begins] = True

    @classmethod
    def open(cls, config: TextDataConfig, *, multiple: int = 1) -> TextSet:
        """Return the rows of a config; errors as in `open_documents`."""
        return cls(
            open_documents(config),
            length=config.length,
            multiple=multiple,
            masks_texts=config.masks_texts,
            shifts=config.shifts,
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of all documents."""
        return sum(map(len, self.documents.texts))

    def __len__(self) -> int:
        return -(-len(self._ids) // self.length)

    def batch(self, samples: Sequence[Sample], *, seed: int) -> dict[str, Tensor]:
        first = torch.tensor([index * self.length + self._offset(epoch, seed) for index, epoch in samples])
        places = (first[:, None] + torch.arange(self.length)) % len(self._ids)
        found = {"ids": self._ids[places].long()}
        return found | {"starts": self._starts[places]} if self._masks_texts else found

    def _offset(self, epoch: int, seed: int) -> int:
        """Return by how many ids the rows of an epoch are cut later."""
        if not self._shifts or not epoch:
            return 0
        return derive_seed(seed, "text", epoch) % (self.length // self._multiple) * self._multiple

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._ids.numpy().tobytes())
        digest.update(repr((self.length, self._multiple, self._masks_texts, self._shifts)).encode())
        return digest.hexdigest()[:16]

    def content(self, *, is_whole: bool = False) -> str | None:
        # The fingerprint is of all bytes, as they were read; what files hold by now is another question.
        files = self.documents.files
        return content_digest(files, is_whole=is_whole) if files else None
