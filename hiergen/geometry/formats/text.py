"""Lines and numbers of text formats, taken apart without a loop over lines.

Letters: `l` lines, `t` words.
"""

from __future__ import annotations

import codecs
import re

import numpy as np
from jaxtyping import Float64, Int64

from hiergen.geometry.formats.polygons import Refused


def plain_text(data: bytes) -> bytes:
    """Return the text without a mark of its encoding, its lines ended by one newline each.

    Raises:
        Refused: If it is no text.
    """
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if data.startswith(mark):
            data = data.decode(encoding, errors="replace").encode()
    # Padding, and the mark of the end of a text under DOS.
    data = data.removeprefix(codecs.BOM_UTF8).rstrip(b"\0\x1a")
    if b"\0" in data:
        raise Refused("is not text, or damaged: it has bytes of zero")
    return re.sub(rb"\r\n?", b"\n", data)


def parse_numbers(text: bytes, count: int) -> Float64[np.ndarray, " t"]:
    """Return the `count` numbers of a text, which white space separates.

    Raises:
        Refused: If a word is no number.
    """
    found = _read_numbers(text)
    if len(found) != count:
        # Programs in Fortran write the exponent of a double as D.
        text = re.sub(rb"(?<=[\d.])[dD](?=[-+]?\d)", b"e", text)
        found = _read_numbers(text)
    if len(found) != count:
        wrong = next((word for word in text.split() if not _is_number(word)), b"")
        raise Refused(f"has {wrong[:40].decode(errors='replace')!r} where a number is expected")
    return found


def _read_numbers(text: bytes) -> Float64[np.ndarray, " t"]:
    try:
        return np.fromstring(text, sep=" ")
    except ValueError:
        return np.zeros(0)


def _is_number(word: bytes) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return b"_" not in word


class Lines:
    """The lines of a text that are not blank.

    Attributes:
        first: Index of the first word of each line among all words.
        num_words: Number of words of each line.
    """

    first: Int64[np.ndarray, " l"]
    num_words: Int64[np.ndarray, " l"]

    def __init__(self, text: bytes) -> None:
        # Ends behind one more space, and has room for the eight bytes of `keywords`.
        self._bytes = np.frombuffer(text + b"\n" + b" " * 8, np.uint8)
        is_word = np.concatenate([[False], self._bytes > 32])
        change = np.flatnonzero(is_word[1:] != is_word[:-1])
        self._begin, self._end = change[::2], change[1::2]
        line = np.searchsorted(np.flatnonzero(self._bytes == 10), self._begin)
        self.first = np.flatnonzero(np.diff(line, prepend=-1))
        self.num_words = np.diff(self.first, append=len(line))

    def word(self, index: int) -> str:
        """Return one word, cut at 40 letters."""
        return self._bytes[self._begin[index] : self._end[index]][:40].tobytes().decode(errors="replace")

    def keywords(self) -> tuple[list[str], Int64[np.ndarray, " l"]]:
        """Return the different first words of lines, cut at eight letters, and for each line which it begins with."""
        begin, end = self._begin[self.first], self._end[self.first]
        code = np.zeros(len(begin), np.uint64)
        for place in range(8):
            letter = np.where(begin + place < end, self._bytes[begin + place], 0)
            code = code << np.uint64(8) | letter.astype(np.uint64)
        known, which = np.unique(code, return_inverse=True)
        return [int(value).to_bytes(8, "big").rstrip(b"\0").decode(errors="replace") for value in known], which

    def numbers(self, words: Int64[np.ndarray, " t"], *, until_slash: bool = False) -> Float64[np.ndarray, " t"]:
        """Return the numbers that the chosen words are, given in ascending order.

        Raises:
            Refused: If a word is no number.
        """
        begin, end = self._begin[words], self._end[words]
        if until_slash:
            slashes = np.append(np.flatnonzero(self._bytes == ord("/")), len(self._bytes))
            end = np.minimum(end, slashes[np.searchsorted(slashes, begin)])
        step = np.zeros(len(self._bytes), np.int8)
        step[begin] = 1
        # An empty word ends where it begins.
        np.subtract.at(step, end, 1)
        return parse_numbers(
            np.where(np.cumsum(step, dtype=np.int8) > 0, self._bytes, 32).astype(np.uint8).tobytes(), len(words)
        )

    def as_indices(self, words: Int64[np.ndarray, " t"], *, until_slash: bool = False) -> Int64[np.ndarray, " t"]:
        """Return the whole numbers that the chosen words are.

        Raises:
            Refused: If a word is no whole number.
        """
        return whole_numbers(self.numbers(words, until_slash=until_slash))


def whole_numbers(values: Float64[np.ndarray, " t"]) -> Int64[np.ndarray, " t"]:
    """Return numbers that must be whole as integers.

    Raises:
        Refused: If one is not.
    """
    wrong = ~((np.abs(values) < 2**53) & (np.floor(values) == values))
    if wrong.any():
        raise Refused(f"has {values[wrong][0]:g} where a whole number is expected")
    return values.astype(np.int64)
