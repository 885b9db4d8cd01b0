"""Which tokens an autoregressive generator predicts together, and what it reads at the positions that predict them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

from hiergen.nn.level_masks import BlockCausalMask
from hiergen.pyramid import LevelSpec


@dataclasses.dataclass(frozen=True)
class Segment:
    """Consecutive input positions of one kind.

    Attributes:
        kind: "condition" (one position), "token" (embeddings of ids) or "special" (learned embeddings).
        start: First id of the sequence or row of the table that is read.
        end: One past the last id or row that is read.
    """

    kind: Literal["condition", "token", "special"]
    start: int
    end: int

    @property
    def first(self) -> int:
        """The first token that a step beginning with this segment predicts."""
        return 0 if self.kind == "condition" else self.end


@dataclasses.dataclass(frozen=True)
class Step:
    """One group: the input positions start:end predict the tokens start:end, seeing all positions before `end`."""

    start: int
    end: int
    segments: tuple[Segment, ...]


@dataclasses.dataclass(frozen=True)
class GroupLayout:
    """All steps of a sequence, in order. Input position p predicts token p; the first input is the condition."""

    steps: tuple[Step, ...]

    @property
    def num_tokens(self) -> int:
        return self.steps[-1].end

    @property
    def num_special_tokens(self) -> int:
        """Number of rows of the special embeddings that are read."""
        return max((part.end for step in self.steps for part in step.segments if part.kind == "special"), default=0)

    @functools.cached_property
    def mask(self) -> BlockCausalMask:
        return BlockCausalMask(tuple(step.end - step.start for step in self.steps))

    @functools.cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The segments of all steps, neighbors of one kind joined."""
        joined: list[Segment] = []
        for part in (part for step in self.steps for part in step.segments):
            if joined and joined[-1].kind == part.kind and joined[-1].end == part.start:
                joined[-1] = dataclasses.replace(joined[-1], end=part.end)
            else:
                joined.append(part)
        return tuple(joined)

    def prefix(self, num_steps: int) -> GroupLayout:
        """Return the layout of the first steps."""
        return GroupLayout(self.steps[:num_steps])

    def of_levels(self, specs: Sequence[LevelSpec], num_levels: int | None) -> GroupLayout:
        """Return the steps that make the first levels, or all of them for None.

        Raises:
            ValueError: If there are not so many levels.
        """
        num_levels = len(specs) if num_levels is None else num_levels
        if not 1 <= num_levels <= len(specs):
            raise ValueError(f"num_levels is {num_levels}, expected 1 to {len(specs)}")
        wanted = sum(spec.num_tokens for spec in specs[:num_levels])
        return self.prefix(sum(step.start < wanted for step in self.steps))

    def count_special_rows(self, wanted: int | None, *, of_levels: bool) -> int:
        """Return the rows of the table of special embeddings: those wanted; for None one less than the tokens of a layout of levels, or 0.

        Raises:
            ValueError: If more are read than wanted.
        """
        needed = self.num_special_tokens
        if wanted is None:
            return self.num_tokens - 1 if of_levels else 0
        if wanted < needed:
            raise ValueError(f"num_special_tokens is {wanted}, the layout reads {needed}")
        return wanted


def token_layout(num_tokens: int) -> GroupLayout:
    """Return the layout of ordinary autoregression: every token is a group of its own, read one position later."""
    return GroupLayout(tuple(_single(position) for position in range(num_tokens)))


def level_layout(num_tokens: int, num_ar_tokens: int) -> GroupLayout:
    """Return HAR's layout: the first tokens one by one, then groups that double the sequence.

    A group that predicts the tokens n to 2n - 1 reads the tokens of the group before it, then learned special embeddings, n
    inputs in all. The special embeddings are numbered through.

    Args:
        num_tokens: Length of the sequence, `num_ar_tokens` times a power of two.
        num_ar_tokens: Tokens that are predicted one by one.

    Raises:
        ValueError: If the sequence cannot be reached by doubling.

    Source:
        ResTok, arXiv:2601.03955, hierarchical autoregressive generation; there four tokens one by one, 128 in all. Unlike the
        official sampler this also holds for `num_ar_tokens=1`.
    """
    doublings = num_tokens // num_ar_tokens if num_ar_tokens > 0 else 0
    if doublings < 1 or num_ar_tokens * doublings != num_tokens or doublings & (doublings - 1):
        raise ValueError(
            f"the levels hold {num_tokens} tokens, expected num_ar_tokens ({num_ar_tokens}, at least 1) times a power of two"
        )
    steps = [_single(position) for position in range(num_ar_tokens)]
    start, special = num_ar_tokens, 0
    while start < num_tokens:
        # The first doubling follows single tokens, so the group before it is one token.
        previous = 1 if start == num_ar_tokens else start // 2
        count = start - previous
        segments = [Segment("token", start - previous, start)]
        if count:
            segments.append(Segment("special", special, special + count))
        steps.append(Step(start, 2 * start, tuple(segments)))
        start, special = 2 * start, special + count
    return GroupLayout(tuple(steps))


def _single(position: int) -> Step:
    part = Segment("condition", 0, 1) if position == 0 else Segment("token", position - 1, position)
    return Step(position, position + 1, (part,))


def build_layout(specs: tuple[LevelSpec, ...], layout: str, num_ar_tokens: int) -> GroupLayout:
    """Return the layout of some levels by its name, "level" or "token".

    Raises:
        ValueError: If the name is unknown, the levels are not discrete of one vocabulary, or a level ends inside a step.
    """
    vocabularies = {spec.vocab_size for spec in specs}
    if len(vocabularies) != 1 or None in vocabularies:
        found = [spec.vocab_size for spec in specs]
        fitting = (
            "; continuous tokens are for the recipes mar-tiny, mar-tiny-levels and flow-tiny" if None in found else ""
        )
        raise ValueError(
            f"level_specs have the vocabularies {found}, expected discrete levels of one vocabulary{fitting}"
        )
    num_tokens = sum(spec.num_tokens for spec in specs)
    if layout == "token":
        return token_layout(num_tokens)
    if layout != "level":
        raise ValueError(f"layout is {layout!r}, expected 'level' or 'token'")
    built = level_layout(num_tokens, num_ar_tokens)
    step_ends, end = {step.end for step in built.steps}, 0
    for index, spec in enumerate(specs):
        end += spec.num_tokens
        if end not in step_ends:
            raise ValueError(f"level {index} ends after {end} tokens, inside a step; steps end at {sorted(step_ends)}")
    return built
