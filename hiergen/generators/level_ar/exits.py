"""Early exits of `LevelAR`: tokens that are read before all steps of its plan have run, and the losses that train such exits.

A token that leaves early has no keys and values at the steps that it skipped, and later tokens that go on would read a hole there:

    fill "run"    the skipped steps run afterwards, without the head. The tokens are those of a model that reads this exit: exact.
    fill "copy"   keys and values of the skipped steps are made from the stream at the exit: cheap, and another model.
    no fill       exact, and free of holes only where no level goes further than any coarser one.

The tempting opposite, coarse levels with few steps and fine ones with many, is refused without a fill: "run" then saves a level's latency
and no work, and "copy" is another model unless it was trained so.

Letters: `b` samples, `r` rows: samples, twice with guidance, `n` tokens of a group, `d` channels, `v` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hiergen.nn.cache import KVCache
from hiergen.nn.depth.stack import BlockStack, Stream

#: What stands at the steps that a token skipped.
Fill = Literal["run", "copy"]
#: How much the exits count: the earlier ones a tenth of the last, or each as much as its number.
ExitLosses = Literal["none", "aggressive", "weighted"]


class EarlyExits:
    """Which exit of the plan the tokens of a step of generation are read at.

    A sample leaves by itself: what else is in the batch changes nothing.

    Args:
        blocks: The model's stack.
        num_levels: Number of levels.
        levels: Number of the exit of each level, 1 for the first; None lets confidence decide.
        confidence: Leave at the first exit whose head gives every token's likeliest id at least this probability.
        fill: What stands at skipped steps.
        use_cache: Whether there is a cache of keys and values.

    Attributes:
        taken: Exit of every sample at each step of generation so far, 1 for the first: one tensor `(b,)` per step.

    Raises:
        ValueError: If the options do not fit together, or a hole would be read.
    """

    def __init__(
        self,
        blocks: BlockStack,
        num_levels: int,
        *,
        levels: Sequence[int] | None = None,
        confidence: float | None = None,
        fill: Fill | None = None,
        use_cache: bool = True,
    ) -> None:
        self.blocks, self.confidence, self.fill = blocks, confidence, fill
        exits = blocks.plan.exits
        self.levels = None if levels is None else tuple(levels)
        self.taken: list[Tensor] = []
        if (levels is None) == (confidence is None):
            raise ValueError("exit_levels and exit_confidence are both given, expected one of the two")
        if len(exits) < 2:
            raise ValueError("exits are asked for, but the plan has none before its last step: mark steps with `exit`")
        if self.levels is not None:
            if len(self.levels) != num_levels or not all(1 <= number <= len(exits) for number in self.levels):
                raise ValueError(
                    f"exit_levels is {list(self.levels)}, expected {num_levels} numbers from 1 to {len(exits)}, the plan's exits"
                )
            if fill is None and list(self.levels) != sorted(self.levels, reverse=True):
                raise ValueError(
                    f"exit_levels is {list(self.levels)} without exit_fill: a level that goes further than a coarser one would read "
                    "keys that are not there; expected numbers that do not grow, or exit_fill 'run' or 'copy'"
                )
        elif fill is None:
            raise ValueError(
                "exit_confidence is given without exit_fill: a later token that goes on would read keys that are not there; "
                "expected exit_fill 'run' or 'copy'"
            )
        if fill == "copy":
            if not use_cache:
                raise ValueError("exit_fill is 'copy' without a cache, expected use_cache True")
            if any(step.inject for step in blocks.plan.steps):
                raise ValueError("exit_fill is 'copy', but the plan injects what entered its loops: expected 'run'")

    def logits(
        self,
        model: Any,
        x: Float[Tensor, "r m d"],
        inputs_of_blocks: tuple[list[Tensor], dict[str, Any]],
        *,
        size: int,
        level: int,
        batch: int,
        cache: KVCache | None,
    ) -> Float[Tensor, "r n v"]:
        """Return the logits of a group's tokens, each sample's from the exit that it takes.

        Args:
            model: The `LevelAR`.
            x: Input embeddings; the group is at the end.
            inputs_of_blocks: What every block takes beside them, by place and by name.
            size: Number of tokens of the group.
            level: Level of the group.
            batch: Number of samples; rows beyond them are the same ones without a class.
            cache: Keys and values of earlier tokens; None where `x` holds these.
        """
        if cache is None and self.fill == "copy":
            raise ValueError(
                "exit_fill is 'copy', but a callback changed tokens, which takes the cache away: expected 'run'"
            )
        inputs, options = inputs_of_blocks
        stream, ends = Stream(x), self.blocks.plan.exits
        done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        taken = torch.full((batch,), len(ends), device=x.device)
        found: Tensor | None = None
        held, position = x, 0
        for number, end in enumerate(ends, start=1):
            for index in range(position, end + 1):
                own = options if cache is None else {**options, "cache": cache.layers[index]}
                if self.fill == "copy" and bool(done.all()):
                    # Nobody goes on: keys and values are all that is needed.
                    self.blocks.advance(Stream(held), index, *inputs, **own, branches=("attention",))
                    continue
                self.blocks.advance(stream, index, *inputs, **own)
                if self.fill == "copy":
                    stream.hold(done, held)
            position = end + 1
            if bool(done.all()):
                if self.fill is None:
                    break
                continue
            leaving, here = self._leaving(model, stream, size=size, level=level, batch=batch, number=number, done=done)
            if here is None:
                continue
            found = here if found is None else torch.where(leaving[:, None, None], here, found)
            taken = torch.where(leaving[:batch], number, taken)
            held = torch.where(leaving[:, None, None], stream.whole, held)
            done = done | leaving
            if self.fill == "copy":
                # At once: the next step may read the stream without the branch that is pending.
                stream.hold(done, held)
        self.taken.append(taken)
        assert found is not None
        return found

    def _leaving(
        self, model: Any, stream: Stream, *, size: int, level: int, batch: int, number: int, done: Bool[Tensor, " r"]
    ) -> tuple[Bool[Tensor, " r"], Tensor | None]:
        """Return which rows leave at an exit, and the logits there; None where nobody asks for them."""
        is_last = number == len(self.blocks.plan.exits)
        if self.levels is not None:
            leaves = number == self.levels[level]
            return torch.full_like(done, leaves), model.read(stream.whole[:, -size:]) if leaves else None
        logits = model.read(stream.whole[:, -size:])
        sure = logits[:batch].float().softmax(dim=-1).amax(dim=-1).amin(dim=-1) >= (self.confidence or 0.0)
        return (sure.repeat(len(done) // batch) | is_last) & ~done, logits


def sum_errors(logits: Sequence[Float[Tensor, "b n v"]], ids: Int[Tensor, "b n"]) -> Float[Tensor, ""]:
    """Return the sum of the mean cross-entropies of several models' logits, in nats."""
    return torch.stack([F.cross_entropy(here.float().flatten(0, 1), ids.flatten()) for here in logits]).sum()


def exit_losses(
    logits: Sequence[Float[Tensor, "b n v"]], ids: Int[Tensor, "b n"], *, kind: ExitLosses, distills: bool
) -> Float[Tensor, ""]:
    """Return the weighted sum of the cross-entropies of all exits, in nats.

    "aggressive": 0.1 for every exit but the last, which counts 1. "weighted": i / (1 + 2 + ... + E) for exit i of E.

    Args:
        logits: Logits at each exit, the last one last.
        ids: The tokens.
        kind: Weights of the exits.
        distills: Whether earlier exits also learn from the last one's distribution, with the same weights; no gradient goes to it.

    Raises:
        ValueError: If the kind is unknown.

    Source:
        Relaxed Recursive Transformers, arXiv:2410.20672, appendix: "aggressive" with distillation did best there.
    """
    count = len(logits)
    if kind == "aggressive":
        weights = [0.1] * (count - 1) + [1.0]
    elif kind == "weighted":
        weights = [2 * number / (count * (count + 1)) for number in range(1, count + 1)]
    else:
        raise ValueError(f"exit_losses is {kind!r}, expected 'aggressive' or 'weighted'")
    teacher = logits[-1].detach().float().softmax(dim=-1)
    total = logits[-1].new_zeros((), dtype=torch.float32)
    for weight, here in zip(weights, logits, strict=True):
        rows = here.float().flatten(0, 1)
        total = total + weight * F.cross_entropy(rows, ids.flatten())
        if distills and here is not logits[-1]:
            total = total + weight * F.cross_entropy(rows, teacher.flatten(0, 1))
    return total
