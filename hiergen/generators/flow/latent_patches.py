"""Squares of latents as the tokens inside a network, for levels that are maps or videos.

Letters: `b` batch, `n` latents of all levels, `m` patches, `c` channels of a latent; `t h w` a level in patches, `p q` a patch.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from hiergen.pyramid import LevelSpec


class LatentPatches:
    """How the latents of all levels are cut into patches: `size` x `size` in space, one frame in time.

    Args:
        specs: The levels: continuous, on grids of rows and columns or of frames, rows and columns, with equal channels.
        size: Side of a patch.

    Attributes:
        grids: Size of each level in patches, along every axis.

    Raises:
        ValueError: If the levels or the size do not fit together.
    """

    def __init__(self, specs: tuple[LevelSpec, ...], size: int) -> None:
        if not specs:
            raise ValueError("level_specs is empty, expected at least one level")
        self._specs, self._size = specs, size
        self.grids: list[tuple[int, ...]] = []
        for index, spec in enumerate(specs):
            grid = spec.grid or ()
            if spec.is_discrete or len(grid) not in (2, 3) or spec.dim != specs[-1].dim:
                raise ValueError(
                    f"level {index} is {spec}, expected continuous tokens on a 2-D or 3-D grid, of the same dim as every other level"
                    f"{'; discrete tokens are for the recipe har-tiny' if spec.is_discrete else ''}"
                )
            if len(grid) != len(specs[-1].grid or ()):
                raise ValueError(
                    f"level {index} has the grid {grid}, the last one {specs[-1].grid}: expected equal axes"
                )
            if size < 1 or any(side % size for side in grid[-2:]):
                raise ValueError(f"patch_size is {size}, expected a divisor of the grid {grid} of level {index}")
            self.grids.append((*grid[:-2], grid[-2] // size, grid[-1] // size))

    @property
    def dim(self) -> int:
        """How many numbers a patch holds."""
        return self._specs[-1].dim * self._size**2

    def fold(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b m d"]:
        """Return the patches of latents: channels first, then the square row by row."""
        p = self._size
        if p == 1:
            return tokens
        levels = tokens.split([spec.num_tokens for spec in self._specs], dim=1)
        return torch.cat(
            [
                rearrange(x, "b (t h p w q) c -> b (t h w) (c p q)", h=h, w=w, p=p, q=p)
                for x, (*_, h, w) in zip(levels, self.grids, strict=True)
            ],
            dim=1,
        )

    def unfold(self, patches: Float[Tensor, "b m d"]) -> Float[Tensor, "b n c"]:
        """Return the latents of patches that hold the square row by row, then channels; surplus channels are dropped."""
        p = self._size
        levels = patches.split([math.prod(grid) for grid in self.grids], dim=1)
        tokens = [
            rearrange(x, "b (t h w) (p q c) -> b (t h p w q) c", h=h, w=w, p=p, q=p)
            for x, (*_, h, w) in zip(levels, self.grids, strict=True)
        ]
        return torch.cat(tokens, dim=1)[..., : self._specs[-1].dim]
