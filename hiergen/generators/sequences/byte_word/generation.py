"""What a generation of bytes and words keeps, and how words end in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hiergen.generators.sequences.byte_word.layout import WordLayout
from hiergen.generators.sequences.byte_word.words import word_starts
from hiergen.nn.blocks.placed import new_caches

if TYPE_CHECKING:
    from hiergen.generators.sequences.byte_word.model import ByteWordTransformer


class ByteWordCache:
    """Keys and values of all layers, and the open word of each row.

    Args:
        batch: Number of rows.
        num_slots: Symbols of a row.
        depths: Layers of encoder, backbone and decoder.

    Attributes:
        used: Symbols of each row so far, `(b,)`.
        encoded: The encoder's outputs, `(b, num_slots, d)`.
        opened: Place of the first symbol of each row's open word.
        closed: Number of words of each row that ended.
        bytes: Bytes of each row's open word.
        vectors: Word vector that each row's open word hears.
    """

    def __init__(self, batch: int, num_slots: int, *, depths: tuple[int, int, int]) -> None:
        self.num_slots = num_slots
        self.encoder, self.backbone, self.decoder = (new_caches(depth, batch, num_slots) for depth in depths)
        self.used = torch.zeros(batch, dtype=torch.int64)
        self.encoded = torch.empty(0)
        self.opened, self.closed, self.bytes = [0] * batch, [0] * batch, [b""] * batch
        self.vectors: list[Tensor] = []

    def begin(
        self, layout: WordLayout, encoded: Tensor, used: Tensor, vectors: Tensor, ids: Tensor, lengths: Tensor
    ) -> None:
        """Note what a prefill read: all words but the last of each row have ended."""
        self.used = used
        self.encoded = encoded.new_zeros(len(encoded), self.num_slots, encoded.shape[2])
        self.encoded[:, : encoded.shape[1]] = encoded
        self.closed = (layout.counts - 1).tolist()
        self.opened = layout.members[torch.arange(len(ids), device=ids.device), layout.counts - 1, 0].tolist()
        front = encoded.shape[1] - ids.shape[1]
        self.bytes = [
            bytes(min(symbol, 255) for symbol in row[max(start - front, 0) : length])
            for row, start, length in zip(ids.tolist(), self.opened, lengths.tolist(), strict=True)
        ]
        self.vectors = list(vectors)


def read_word_ends(model: ByteWordTransformer, ids: Tensor, cache: ByteWordCache) -> list[list[int]]:
    """Take the next id of each row; return at which places of the row words begin that were not known of, in order."""
    if not model.is_text:
        begins = [start + model.num_front for start in model.level_starts]
        return [[place] if place in begins else [] for place in cache.used.tolist()]
    found = []
    for row, symbol in enumerate(ids.tolist()):
        cache.bytes[row] += bytes([symbol])
        starts = word_starts(cache.bytes[row], max_bytes=model.config["max_word_bytes"])[1:]
        found.append([cache.opened[row] + start for start in starts])
        if starts:
            cache.bytes[row] = cache.bytes[row][starts[-1] :]
    return found


def close_words(model: ByteWordTransformer, ends: list[list[int]], cache: ByteWordCache) -> list[list[Tensor]]:
    """End the words in front of the places; return the word vector of each symbol that is to be decoded: the last of each row at least."""
    used = cache.used.tolist()
    firsts = [row[0] if row else place for row, place in zip(ends, used, strict=True)]
    found: list[list[Tensor]] = [[] for _ in ends]
    for number in range(max(map(len, ends), default=0)):
        rows = [row for row, places in enumerate(ends) if number < len(places)]
        _close(model, rows, [ends[row][number] for row in rows], cache)
        for row in rows:
            places = [*ends[row], used[row] + 1]
            found[row] += [cache.vectors[row]] * (places[number + 1] - places[number])
    for row, first in enumerate(firsts):
        found[row] = found[row] or [cache.vectors[row]] * (used[row] + 1 - first)
    return found


def _close(model: ByteWordTransformer, rows: list[int], ends: list[int], cache: ByteWordCache) -> None:
    """End the open word of some rows in front of `ends`: pool its symbols, and let the backbone read it."""
    device = cache.encoded.device
    index = torch.tensor(rows, device=device)
    spans = [(cache.opened[row], end) for row, end in zip(rows, ends, strict=True)]
    size = max(end - start for start, end in spans)
    places = torch.tensor([start for start, _ in spans], device=device)[:, None] + torch.arange(size, device=device)
    sizes = torch.tensor([end - start for start, end in spans], device=device)
    numbers = torch.tensor([cache.closed[row] for row in rows], device=device)[:, None]
    inside = torch.arange(size, device=device).expand(len(rows), -1)
    layout = WordLayout(
        word=torch.zeros_like(places),
        members=inside[:, None],
        is_member=(inside < sizes[:, None])[:, None],
        text=torch.zeros_like(places),
        place=places,
        word_text=torch.zeros_like(numbers),
        word_place=numbers,
        counts=torch.ones_like(sizes),
    )
    symbols = cache.encoded[index[:, None], places.clamp(max=cache.num_slots - 1)]
    outputs = model.think_slots(model.pooling(symbols, layout), numbers, cache, index)[:, 0]
    for row, end, output in zip(rows, ends, outputs, strict=True):
        cache.opened[row], cache.vectors[row] = end, output
        cache.closed[row] += 1
