"""The plan of a stack of transformer blocks: a list of steps, each of which says which block runs and how.

plain(4)                       0 1 2 3
cycle(2, loops=2)              0 1 0 1         a recursive model (Relaxed Recursive Transformers)
sandwich(1, 1, 1, loops=3)     0 1 1 1 2       before, loop, after (AlgoFormer)
sequence(2, loops=2)           0 0 1 1         neighbors that are equal (Sliced Recursive Transformer)
ladder(4)                      0 1 2 3         each branch reads the stream without the branch just before it (Ladder-residual)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from hiergen.checked import Checked, Count, CountOrZero, Range
from hiergen.config import nearest


@dataclasses.dataclass(frozen=True)
class Step(Checked):
    """One application of a block.

    Attributes:
        block: Index of the block.
        rank: Rank of this step's own difference to the block's matrices; 0 for none.
        own_vectors: Whether the step has its own norms, biases and scales, stored as differences.
        lag: 0: both branches read the whole stream. 1: each reads it without the branch just before.
        project: Whether a projection of its own follows the block: x = c1 x + c2 MLP(LN(x)).
        inject: Whether what entered the first step of the same block is added to the stream first.
        groups: Number of groups inside which attention mixes tokens; 1 mixes all. Repeated steps permute the tokens first.
        exit: Whether the model's head may read the stream after this step.
    """

    block: CountOrZero = 0
    rank: CountOrZero = 0
    own_vectors: bool = False
    lag: Annotated[int, Range(0, 1)] = 0
    project: bool = False
    inject: bool = False
    groups: Count = 1
    exit: bool = False

    @property
    def differs(self) -> bool:
        """Whether the step has parameters of its own in place of the block's."""
        return self.rank > 0 or self.own_vectors

    def to_json(self) -> dict[str, Any]:
        """Return the entries that are not the default."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name == "block" or getattr(self, field.name) != field.default
        }


@dataclasses.dataclass(frozen=True)
class DepthPlan:
    """The steps of a stack, first to last.

    Attributes:
        steps: The steps. Their blocks are 0 to K - 1, and each is used.

    Raises:
        ValueError: If there is no step, a block is left out, or a step injects what nothing entered.
    """

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        used = sorted({step.block for step in self.steps})
        if not self.steps or used != list(range(len(used))):
            raise ValueError(f"plan uses the blocks {used}, expected 0 to the number of blocks less one, without a gap")
        for index, step in enumerate(self.steps):
            if step.inject and self.is_first(index):
                raise ValueError(
                    f"step {index} of the plan injects, but is the first of block {step.block}: nothing entered it before"
                )

    @property
    def num_blocks(self) -> int:
        """Number of blocks that the steps share."""
        return 1 + max(step.block for step in self.steps)

    @property
    def is_plain(self) -> bool:
        """Whether every block runs once, in order, as it is."""
        return self == plain(len(self.steps))

    @property
    def exits(self) -> tuple[int, ...]:
        """Indices of the steps after which the head may read; the last step always counts."""
        marked = [index for index, step in enumerate(self.steps[:-1]) if step.exit]
        return (*marked, len(self.steps) - 1)

    def is_first(self, index: int) -> bool:
        """Return whether no earlier step runs the same block."""
        return all(step.block != self.steps[index].block for step in self.steps[:index])

    def to_json(self) -> list[dict[str, Any]]:
        """Return the steps as JSON, defaults left out."""
        return [step.to_json() for step in self.steps]


def plan_from_json(value: Sequence[Mapping[str, Any]] | None, depth: int, name: str = "plan") -> DepthPlan:
    """Return the plan of a stack of `depth` blocks; None is the plain one.

    Args:
        value: The steps as JSON.
        depth: Number of blocks of the stack.
        name: What messages call the value.

    Raises:
        ValueError: If a step has an unknown entry or an entry of the wrong kind, or the plan uses another number of blocks.
    """
    if value is None:
        return plain(depth)
    known = {field.name for field in dataclasses.fields(Step)}
    steps = []
    for index, entries in enumerate(value):
        if not isinstance(entries, Mapping) or "block" not in entries:
            raise ValueError(f"step {index} of {name} is {entries!r}, expected a mapping with the entry 'block'")
        if unknown := sorted(set(entries) - known):
            raise ValueError(f"step {index} of {name} has the unknown entry {unknown[0]!r}{nearest(unknown[0], known)}")
        steps.append(Step(**entries))
    plan = DepthPlan(tuple(steps))
    if plan.num_blocks != depth:
        raise ValueError(f"{name} uses {plan.num_blocks} blocks, the stack has {depth}")
    return plan


def part_plan(
    plans: Mapping[str, Sequence[Mapping[str, Any]]] | None, part: str, *others: str
) -> Sequence[Mapping[str, Any]] | None:
    """Return the plan of one of the stacks of a model that has several; None where there is none.

    Args:
        plans: Plans by the names of stacks.
        part: The stack.
        others: The model's other stacks.

    Raises:
        ValueError: If the model has no stack of a name.
    """
    known = {part, *others}
    if unknown := sorted(set(plans or ()) - known):
        raise ValueError(f"plan names the stack {unknown[0]!r}, expected {' or '.join(map(repr, sorted(known)))}")
    return None if plans is None else plans.get(part)


def plain(depth: int) -> DepthPlan:
    """Return the plan of an ordinary stack: every block once."""
    return DepthPlan(tuple(Step(block) for block in range(depth)))


def cycle(num_blocks: int, *, loops: int, rank: int = 0, lag: int = 0, inject: bool = False) -> DepthPlan:
    """Return all blocks in order, `loops` times over, with an exit after each loop.

    Args:
        num_blocks: Number of blocks of a loop.
        loops: Number of loops.
        rank: Rank of each step's difference to its block, the first loop's too; above 0 each step has its own vectors as well.
        lag: `Step.lag` of all steps.
        inject: Whether every loop but the first adds what entered the first one (looped transformer, arXiv:2311.12424).

    Source:
        Relaxed Recursive Transformers, arXiv:2410.20672.
    """
    return DepthPlan(
        tuple(
            Step(
                block,
                rank=rank,
                own_vectors=rank > 0,
                lag=lag,
                inject=inject and loop > 0 and block == 0,
                exit=block == num_blocks - 1,
            )
            for loop in range(_checked(loops, "loops"))
            for block in range(_checked(num_blocks, "num_blocks"))
        )
    )


def sandwich(before: int, shared: int, after: int, *, loops: int, rank: int = 0, inject: bool = False) -> DepthPlan:
    """Return blocks that run once, then `shared` blocks in `loops` loops, then blocks that run once.

    Args:
        before: Number of blocks in front of the loop.
        shared: Number of blocks of a loop.
        after: Number of blocks behind the loop.
        loops: Number of loops.
        rank: Rank of the looped steps' differences, as in `cycle`.
        inject: As in `cycle`.

    Source:
        AlgoFormer, arXiv:2402.13572; with a rank, "middle cycle" of Mixture-of-Recursions, arXiv:2507.10524.
    """
    looped = [
        dataclasses.replace(step, block=before + step.block, exit=False)
        for step in cycle(shared, loops=loops, rank=rank, inject=inject).steps
    ]
    first, last = range(before), range(before + shared, before + shared + after)
    return DepthPlan((*map(Step, first), *looped, *map(Step, last)))


def sequence(
    num_blocks: int, *, loops: int, rank: int = 0, project: bool = False, groups: Sequence[int] = ()
) -> DepthPlan:
    """Return every block `loops` times, one block after another.

    Args:
        num_blocks: Number of blocks.
        loops: Number of times that each runs.
        rank: Rank of each step's difference to its block, as in `cycle`.
        project: Whether a projection of its own follows every step.
        groups: Groups of attention at each repetition of a block, e.g. (4, 1); empty for 1 everywhere.

    Raises:
        ValueError: If there is not one number of groups for each repetition.

    Source:
        Sliced Recursive Transformer, arXiv:2111.05297.
    """
    if groups and len(groups) != loops:
        raise ValueError(f"groups is {tuple(groups)}, expected {loops} numbers, one for each loop")
    return DepthPlan(
        tuple(
            Step(block, rank=rank, own_vectors=rank > 0, project=project, groups=groups[loop] if groups else 1)
            for block in range(_checked(num_blocks, "num_blocks"))
            for loop in range(_checked(loops, "loops"))
        )
    )


def ladder(depth: int, *, last: int | None = None) -> DepthPlan:
    """Return a plain stack whose branches read the stream without the branch just before them.

    Args:
        depth: Number of blocks.
        last: Number of blocks at the end that do; None is all.

    Raises:
        ValueError: If there are not so many blocks.

    Source:
        Ladder-residual, arXiv:2501.06589.
    """
    laddered = depth if last is None else last
    if not 0 <= laddered <= depth:
        raise ValueError(f"last is {last}, expected 0 to {depth}")
    return DepthPlan(tuple(Step(block, lag=int(block >= depth - laddered)) for block in range(depth)))


def stepwise_layers(depth: int, num_blocks: int) -> tuple[int, ...]:
    """Return which layers of a stack stand for `num_blocks` of them: evenly spaced, the first and the last among them.

    Halves are rounded to even, as in the published program: 18 layers in 9 blocks are 0 2 4 6 8 11 13 15 17.
    """
    if num_blocks == 1:
        return (0,)
    return tuple(round(index * (depth - 1) / (num_blocks - 1)) for index in range(num_blocks))


def _checked(count: int, name: str) -> int:
    if count < 1:
        raise ValueError(f"{name} is {count}, expected at least 1")
    return count
