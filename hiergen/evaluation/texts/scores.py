"""What models of bytes are measured by: bits per byte, operations per row, and whether chunks begin at words."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.data.text.dataset import TextSet
from hiergen.generators.sequences.base import SequenceModel
from hiergen.generators.sequences.byte_word.words import word_starts
from hiergen.generators.sequences.hnet.model import HNet
from hiergen.generators.sequences.texts import END, Texts
from hiergen.nn.running.modes import evaluating
from hiergen.training.reporting.throughput import flop_counter

BATCH_SIZE = 16


@torch.no_grad()
def bits_per_byte(model: SequenceModel, data: TextSet, *, sizes: Tensor | None = None) -> float:
    """Return the mean bits per byte of all rows. Filling behind a text's end is not counted, so models of blocks have no advantage.

    Args:
        model: A model of text.
        data: The rows.
        sizes: Bytes of each id of a vocabulary, `(v,)`; None for a model of bytes.
    """
    nats, count = torch.zeros((), dtype=torch.float64), 0
    with evaluating(model):
        for texts in _batches(data):
            ids = texts.ids
            assert texts.starts is not None
            logits = model(ids[:, :-1], starts=texts.starts[:, :-1])
            is_filling = (ids[:, 1:] == END) & (ids[:, :-1] == END)
            scored = texts.is_scored[:, 1:] & ~is_filling
            nats += F.cross_entropy(logits[scored].float(), ids[:, 1:][scored], reduction="sum")
            count += int(scored.sum() if sizes is None else sizes[ids[:, 1:][scored]].sum())
    return float(nats) / count / math.log(2)


@torch.no_grad()
def count_operations(model: SequenceModel, data: TextSet, *, num_rows: int = 8) -> int:
    """Return the multiply-adds of matrix products, convolutions and attention in a forward pass of one row, a mean over some rows."""
    texts = next(iter(_batches(data, num_rows)))
    with evaluating(model), flop_counter() as counter:
        model.loss(texts)
    return int(counter.get_total_flops()) // 2 // len(texts.ids)


@torch.no_grad()
def share_at_words(model: HNet, data: TextSet) -> dict[str, float]:
    """Return the shares of chunks of the outermost stage, and of all bytes, that are within one byte of a word's first byte."""
    near, at, total, bytes_near = 0, 0, 0, 0
    for text in data.documents.texts:
        marks = model.find_boundaries(torch.tensor([list(text[:4096])]))[0][0]
        begins = torch.zeros(len(marks) + 2, dtype=torch.bool)
        begins[[place + 1 for place in word_starts(text[:4096])]] = True
        is_near: Tensor = begins[:-2] | begins[1:-1] | begins[2:]
        near, at = near + int((is_near & marks).sum()), at + int(marks.sum())
        total, bytes_near = total + len(marks), bytes_near + int(is_near.sum())
    return {"chunks": near / at, "bytes": bytes_near / total}


def _batches(data: TextSet, size: int = BATCH_SIZE) -> list[Texts]:
    """Return all rows in batches."""
    found = []
    for start in range(0, len(data), size):
        batch = data.batch([(index, 0) for index in range(start, min(start + size, len(data)))], seed=0)
        found.append(Texts(batch["ids"], starts=batch["starts"]))
    return found
