"""What the levels of a pyramid look like. Apart from `hiergen.pyramid`, because presets and command lines do without PyTorch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class LevelSpec:
    """What one level of tokens looks like.

    Attributes:
        num_tokens: Tokens of the level.
        grid: Arrangement of the tokens, row-major, e.g. `(16, 16)`; None where they have no order in space.
        dim: Channels of a token: of the code vector if discrete, of the token itself if continuous.
        vocab_size: Number of ids of a discrete level; None for continuous tokens.
    """

    num_tokens: int
    grid: tuple[int, ...] | None = None
    dim: int = 1
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        if self.grid is not None and math.prod(self.grid) != self.num_tokens:
            raise ValueError(f"grid {self.grid} holds {math.prod(self.grid)} tokens, num_tokens is {self.num_tokens}")
        for name in ("num_tokens", "dim", "vocab_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")

    @property
    def is_discrete(self) -> bool:
        return self.vocab_size is not None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def square_specs(sides: Sequence[int], *, dim: int, vocab_size: int | None) -> tuple[LevelSpec, ...]:
    """Return a ladder of square maps, from the side of the coarsest to that of the finest."""
    return tuple(LevelSpec(side**2, (side, side), dim, vocab_size) for side in sides)


def specs_to_json(specs: Sequence[LevelSpec]) -> list[dict[str, Any]]:
    """Return level specs as plain JSON values, for configs and file headers."""
    return [spec.to_dict() for spec in specs]


def specs_from_json(values: Sequence[dict[str, Any]]) -> tuple[LevelSpec, ...]:
    """Return the level specs that `specs_to_json` wrote."""
    # JSON has no tuples: a spec that was read back must equal the one that was written.
    return tuple(LevelSpec(**{**value, "grid": value["grid"] and tuple(value["grid"])}) for value in values)


def shared_vocabulary(specs: Sequence[LevelSpec]) -> int:
    """Return the vocabulary that all levels share.

    Raises:
        ValueError: If a level is continuous, or they differ.
    """
    found = [spec.vocab_size for spec in specs]
    if len(set(found)) != 1 or found[0] is None:
        raise ValueError(f"level_specs have the vocabularies {found}, expected discrete levels of one vocabulary")
    return found[0]
