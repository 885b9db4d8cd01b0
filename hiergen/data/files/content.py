"""Whether files still hold what they held: a digest of bytes at fixed places of each file, cheap enough for the start of every run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

#: Number of bytes that are read at each place.
PIECE = 4096
#: Read at least NUM_PLACES places of a span, both ends included, and one per BYTES_PER_PLACE bytes of a long one.
NUM_PLACES, BYTES_PER_PLACE = 3, 2**20
#: Number of threads that read files, and of files that each takes at a time: on a network the time goes into waiting.
_THREADS, _FILES_PER_TASK = 16, 64


class Span(NamedTuple):
    """Part of a file: all of it where `size` is None."""

    path: Path
    offset: int = 0
    size: int | None = None


def content_digest(spans: Sequence[Span], *, is_whole: bool = False) -> str:
    """Return 16 hexadecimal digits of the spans' sizes and of what is in them, in their order; names are left out.

    What lies between the places is seen only with `is_whole`. Without it, one picture put in another's place is noticed, because packed
    pictures differ everywhere; a few changed pixels of an unpacked picture may not be. A file that cannot be read changes the digest, but
    is no error: it may be a broken picture, which training skips.
    """
    digest = hashlib.sha256()
    files = list(_by_file(spans))
    with ThreadPoolExecutor(_THREADS) as pool:
        tasks = (files[start : start + _FILES_PER_TASK] for start in range(0, len(files), _FILES_PER_TASK))
        for found in pool.map(lambda task: [_digest(path, parts, is_whole) for path, parts in task], tasks):
            digest.update(b"".join(found))
    return digest.hexdigest()[:16]


def _by_file(spans: Iterable[Span]) -> Iterable[tuple[Path, list[tuple[int, int | None]]]]:
    """Yield the spans of each file that follow each other, so that it is opened once."""
    path: Path | None = None
    parts: list[tuple[int, int | None]] = []
    for span in spans:
        if span.path != path and path is not None:
            yield path, parts
            parts = []
        path = span.path
        parts.append((span.offset, span.size))
    if path is not None:
        yield path, parts


def _digest(path: Path, parts: list[tuple[int, int | None]], is_whole: bool) -> bytes:
    digest = hashlib.sha256()
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for offset, size in parts:
                length = os.fstat(descriptor).st_size - offset if size is None else size
                digest.update(length.to_bytes(8))
                for place, count in _places(length, is_whole):
                    digest.update(os.pread(descriptor, count, offset + place))
        finally:
            os.close(descriptor)
    except OSError as error:
        digest.update(f"not read: {error.errno}".encode())
    return digest.digest()


def _places(length: int, is_whole: bool) -> Iterable[tuple[int, int]]:
    """Yield (offset, bytes) of what is read of a span."""
    number = max(NUM_PLACES, length // BYTES_PER_PLACE)
    if is_whole or length <= number * PIECE:
        yield from ((start, min(BYTES_PER_PLACE, length - start)) for start in range(0, length, BYTES_PER_PLACE))
        return
    yield from ((k * (length - PIECE) // (number - 1), PIECE) for k in range(number))
