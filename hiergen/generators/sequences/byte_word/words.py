"""Where words begin in a text, by a fixed rule: Unicode's word boundaries, cut and joined again so that few words are long or empty.

A word carries the single space in front of it and the punctuation behind it: `Hello, world!` is `Hello,` and ` world!`.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from typing import Any, Literal

#: Bytes that are no UTF-8 are read as these characters, each a word of its own.
_FOREIGN = ("\udc80", "\udcff")

_Kind = Literal["space", "blank", "mark", "text"]


def split_words(text: str, *, max_bytes: int = 100) -> list[str]:
    """Return the words of a text; joined they are the text.

    Args:
        text: The text.
        max_bytes: Most bytes of a word in UTF-8; longer ones are cut, between characters where one ends in time.

    Source:
        The rule of the TFree-HAT models, arXiv:2603.15953, as their behavior was described to us.
    """
    data = text.encode("utf-8", "surrogateescape")
    ends = [*word_starts(data, max_bytes=max_bytes), len(data)]
    return [data[start:end].decode("utf-8", "surrogateescape") for start, end in itertools.pairwise(ends)]


def word_starts(data: bytes, *, max_bytes: int = 100) -> list[int]:
    """Return the places of the bytes that begin a word.

    Bytes that are no UTF-8 are words of their own; but those of a character that has just not ended yet stay with the word before.

    Args:
        data: A text, or its beginning.
        max_bytes: Most bytes of a word.
    """
    whole = len(data) - _unfinished(data)
    text = data[:whole].decode("utf-8", "surrogateescape")
    starts, place = [], 0
    for is_foreign, characters in itertools.groupby(text, lambda c: _FOREIGN[0] <= c <= _FOREIGN[1]):
        part = "".join(characters)
        words = list(part) if is_foreign else _join(_pieces(part))
        for word in words:
            size = len(word.encode("utf-8", "surrogateescape"))
            starts += _limited(data[place : place + size], place, max_bytes)
            place += size
    return starts or ([0] if data else [])


def _unfinished(data: bytes) -> int:
    """Return how many of the last bytes begin a character that needs more of them."""
    for count in range(1, min(3, len(data)) + 1):
        lead = data[-count]
        if lead >= 0xC2:
            needed = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4 if lead < 0xF5 else 0
            return count if count < needed else 0
        if lead < 0x80:
            return 0
    return 0


@functools.cache
def _boundary() -> Any:
    """Return the pattern of Unicode's word boundaries (annex 29)."""
    import regex

    return regex.compile(r"(?w)\b")


def _pieces(text: str) -> list[str]:
    """Return the text cut at word boundaries, behind punctuation and where a lower case letter meets an upper case one."""
    cuts = {found.start() for found in _boundary().finditer(text)} | {0, len(text)}
    kinds = [unicodedata.category(character) for character in text]
    for place, kind in enumerate(kinds):
        if kind[0] == "P" or (kind == "Ll" and kinds[place + 1 : place + 2] == ["Lu"]):
            cuts.add(place + 1)
    pieces = [text[start:end] for start, end in itertools.pairwise(sorted(cuts))]
    runs = itertools.groupby(pieces, lambda piece: piece == " ")
    return [piece for is_space, run in runs for piece in (["".join(run)] if is_space else run)]


def _kind(piece: str) -> _Kind:
    if piece == " ":
        return "space"
    if piece.isspace():
        return "blank"
    return "mark" if len(piece) == 1 and unicodedata.category(piece)[0] == "P" else "text"


def _join(pieces: list[str]) -> list[str]:
    """Return words: a single space joins the text behind it, and a mark what is before it unless that is blank."""
    words: list[str] = []
    last: _Kind = "blank"
    for piece in pieces:
        kind = _kind(piece)
        if (last == "space" and kind == "text") or (kind == "mark" and last in ("space", "text", "mark")):
            words[-1] += piece
        else:
            words.append(piece)
        last = kind
    return words


def _limited(word: bytes, place: int, max_bytes: int) -> list[int]:
    """Return where the parts of a word begin, which begins at `place`."""
    starts, done = [], 0
    while done < len(word):
        starts.append(place + done)
        end = done + max_bytes
        # Back to the beginning of a character, unless none begins inside the part.
        back = end
        while done < back < len(word) and word[back] & 0xC0 == 0x80:
            back -= 1
        done = back if back > done else end
    return starts
