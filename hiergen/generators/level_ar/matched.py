"""Conditions that match the level: coarse tokens read the coarse part of a class's path, finer tokens read further down it.

    depth_k = ceil((k + 1) D / K)                       K levels of tokens, a tree of D levels of classes
    input 0                += E_l[path_l]               for l < depth_0, and for attributes
    inputs of tokens of k  += E_l[path_l]               for depth_0 <= l < depth_k

A token sees no input of a finer level, so that coarse tokens are the same for all classes of a group.

Letters: `b` batch, `n` tokens, `l` levels of classes, `d` channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hiergen.generators.conditioning import ClassPathEmbedding
from hiergen.nn.constants import Constants
from hiergen.pyramid import LevelSpec


class LevelConditions:
    """Which levels of classes the tokens of each level read.

    Args:
        table: The embedding of the classes, whose tables are read.
        specs: Levels of tokens.

    Raises:
        ValueError: If classes are no paths, or there is nothing to tell apart.
    """

    def __init__(self, table: object, specs: Sequence[LevelSpec]) -> None:
        if not isinstance(table, ClassPathEmbedding):
            raise ValueError("level_conditions is True, expected a class_hierarchy beside it")
        levels, depth = len(specs), table.hierarchy.depth
        if levels < 2 or depth < 2:
            raise ValueError(
                f"level_conditions is True with {levels} levels of tokens and {depth} of classes, expected two of both at least"
            )
        self.depths = tuple(-(-(k + 1) * depth // levels) for k in range(levels))
        each = torch.tensor(self.depths, device="cpu").repeat_interleave(
            torch.tensor([spec.num_tokens for spec in specs], device="cpu")
        )
        self._constants, self._levels, self._depth = Constants(depths=each), table.levels, depth
        self._paths = table.paths

    def first(self, condition: Any) -> Float[Tensor, "b d"]:
        """Return the input of the condition, nodes or paths: what all levels read."""
        return self._read(condition, [*range(self.depths[0]), *range(self._depth, len(self._levels))]).sum(dim=1)

    def finer(self, condition: Any, start: int, count: int) -> Float[Tensor, "b n d"]:
        """Return what is added to the inputs that predict `count` tokens from `start` on."""
        wanted = torch.arange(self.depths[0], self._depth, device=condition.device)
        depths = self._constants.on(condition.device)["depths"][start : start + count]
        rows = self._read(condition, wanted.tolist())
        return (depths[:, None] > wanted).to(rows.dtype) @ rows

    def _read(self, condition: Any, levels: Sequence[int]) -> Float[Tensor, "b l d"]:
        paths = self._paths(condition)
        return torch.stack([self._levels[level](paths[:, level]) for level in levels], dim=1)
