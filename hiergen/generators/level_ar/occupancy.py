"""How full a batch is when samples leave a recursive model at different loops: a simulation in units of one loop of the whole batch.

A slot of depth-wise batching holds one (sequence, loop) pair. All slots run the same shared blocks, each with what its own loop adds to
them; a sequence that exits goes on with its next token at once, and a slot whose sequence ends takes the next sequence at once.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Literal, get_args

#: "depth": slots hold loops. "sequence": all slots run all loops of a token together, and a slot that is free takes the next sequence.
#: "static": so too, but a batch of sequences ends with its longest.
Batching = Literal["depth", "sequence", "static"]


@dataclasses.dataclass(frozen=True)
class Occupancy:
    """What a simulation counted.

    Attributes:
        ticks: Loops of the batch, one after another.
        tokens: Tokens that were made.
        busy: Slots that held work, summed over the ticks.
        most_busy: Largest number of slots that held work in a tick.
        finished: Tick after which each sequence ended, in the order of the sequences.
    """

    ticks: int
    tokens: int
    busy: int
    most_busy: int
    finished: tuple[int, ...]

    def throughput(self, batch_size: int, num_loops: int) -> float:
        """Return tokens per tick over those of a batch that is always full and never exits: above 1 is what exits save."""
        return self.tokens * num_loops / (self.ticks * batch_size)


def simulate(exits: Sequence[Sequence[int]], *, batch_size: int, num_loops: int, batching: str = "depth") -> Occupancy:
    """Return how a queue of sequences goes through a batch.

    Skipped loops are taken to be filled for nothing (`hiergen.generators.level_ar.exits`, fill "copy").

    Args:
        exits: Loop after which each token of each sequence exits, 1 to `num_loops`.
        batch_size: Number of slots.
        num_loops: Loops of the model.
        batching: How slots are filled, a `Batching`; only "depth" gains from exits.

    Raises:
        ValueError: If there is no sequence, one is empty, or an exit, the batch or the batching is out of range.

    Source:
        Relaxed Recursive Transformers, arXiv:2410.20672: continuous depth-wise batching.
    """
    if batching not in get_args(Batching):
        raise ValueError(f"batching is {batching!r}, expected one of {get_args(Batching)}")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    if not exits or not all(len(sequence) for sequence in exits):
        raise ValueError("exits holds no sequence or an empty one, expected at least one token in each")
    if bad := [number for sequence in exits for number in sequence if not 1 <= number <= num_loops]:
        raise ValueError(f"exits holds {bad[0]}, expected 1 to {num_loops}, the number of loops")
    work = [sum(sequence) if batching == "depth" else num_loops * len(sequence) for sequence in exits]
    waiting, slots, finished = deque(range(len(exits))), dict[int, int](), [0] * len(exits)
    ticks = busy = most = 0
    while waiting or slots:
        if not (batching == "static" and slots):
            while waiting and len(slots) < batch_size:
                sequence = waiting.popleft()
                slots[sequence] = work[sequence]
        ticks, busy, most = ticks + 1, busy + len(slots), max(most, len(slots))
        slots = {sequence: left - 1 for sequence, left in slots.items()}
        for sequence in [sequence for sequence, left in slots.items() if left == 0]:
            finished[sequence] = ticks
            del slots[sequence]
    return Occupancy(ticks, sum(map(len, exits)), busy, most, tuple(finished))
