"""Misspelled texts, to measure what typing errors cost a model."""

from __future__ import annotations

import torch

from hiergen.data.text.sources import Documents
from hiergen.seeding import make_rng

_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def misspell(text: bytes, share: float, *, rng: torch.Generator) -> bytes:
    """Return a text with spelling errors: a letter is left out, written twice, or swapped with the letter behind it, equally often.

    A letter without a letter behind it is written twice where it should be swapped. Only letters of ASCII are touched.

    Args:
        text: The text.
        share: Probability that a letter is wrong, 0 to 1.
        rng: Source of the draws.

    Raises:
        ValueError: If `share` is out of range.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}, expected 0 to 1")
    is_wrong = (torch.rand(len(text), generator=rng) < share).tolist()
    kinds = torch.randint(3, (len(text),), generator=rng).tolist()
    found, place = bytearray(), 0
    while place < len(text):
        letter, behind = text[place : place + 1], text[place + 1 : place + 2]
        if not is_wrong[place] or letter[0] not in _LETTERS:
            found += letter
        elif kinds[place] == 0:
            pass
        elif kinds[place] == 1 or not behind or behind[0] not in _LETTERS:
            found += letter * 2
        else:
            found += behind + letter
            place += 1
        place += 1
    return bytes(found)


def misspelled(documents: Documents, share: float, *, seed: int = 0) -> Documents:
    """Return documents of the same names with spelling errors, the same for a seed."""
    texts = (
        misspell(text, share, rng=make_rng(seed, "misspell", name))
        for name, text in zip(documents.names, documents.texts, strict=True)
    )
    return Documents(documents.names, tuple(texts))
