"""What is given before a generation begins, and stays: whole levels, or the tokens at some of their places.

Letters: `b` batch, `n` tokens of a level, `m` tokens of all levels, `c` channels, `t h w` frames, rows and columns of the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from hiergen.levels import LevelSpec
from hiergen.pyramid import TokenPyramid


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """Tokens that a generator does not make but is given (`Generator.generate`); checks itself on construction.

    Attributes:
        pyramid: The first levels, or all, in the tokenizer's own units; one row per sample.
        masks: One per level of the pyramid: bool `(b, n)`, True where the token is given; None where the whole level is. An empty tuple
            gives all of every level. What the pyramid holds at places that are not given is never read.

    Raises:
        ValueError: If masks and levels disagree in number or shape, or a mask is not of bool.
    """

    pyramid: TokenPyramid
    masks: tuple[Tensor | None, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "masks", tuple(self.masks))
        if self.masks and len(self.masks) != len(self.pyramid):
            raise ValueError(
                f"masks holds {len(self.masks)} masks, expected {len(self.pyramid)}, one per level of the pyramid, or none at all"
            )
        for index, (mask, level) in enumerate(zip(self.masks, self.pyramid.levels, strict=False)):
            if mask is not None and (mask.dtype != torch.bool or mask.shape != level.shape[:2]):
                raise ValueError(
                    f"mask of level {index} is {mask.dtype} of shape {tuple(mask.shape)}, "
                    f"expected torch.bool of shape {tuple(level.shape[:2])}"
                )

    @classmethod
    def outside(cls, pyramid: TokenPyramid, mask: Bool[Tensor, "*size"], *, share: float = 0.0) -> Known:
        """Return what is given where a part of the data is to be made anew.

        A token of a level with a grid is given where nothing in its cell is to be made; coarse tokens are therefore less often given.
        A cell whose sides are no whole number of pixels holds all pixels that it touches.

        Args:
            pyramid: The tokens of the data.
            mask: True where the data are to be made: `(b, h, w)`, of clips also `(b, t, h, w)`; of any size, since it is laid over the grid.
            share: Largest share of a cell that may be to be made while its token is given still, at least 0 and below 1. Levels that add up
                are better kept by the majority, 0.5, as VAR's official editing does: fine ones fit no other coarse ones.

        Raises:
            ValueError: If the share is out of range; if the mask is not of bool, of another batch or of other axes than a grid; or if something is to be made and a level
                has no grid, so that its tokens have no place in the data.
        """
        if mask.dtype != torch.bool or len(mask) != pyramid.batch_size or mask.ndim not in (3, 4):
            raise ValueError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}, expected torch.bool "
                f"({pyramid.batch_size}, h, w), one per sample, or of clips ({pyramid.batch_size}, t, h, w)"
            )
        if not 0 <= share < 1:
            raise ValueError(f"share is {share}, expected at least 0 and below 1")
        return cls(pyramid, tuple(_outside(index, spec, mask, share) for index, spec in enumerate(pyramid.specs)))

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.pyramid.batch_size

    def mask_of(self, level: int) -> Bool[Tensor, "b n"]:
        """Return where the tokens of a level of the pyramid are given.

        Raises:
            ValueError: If the pyramid has no such level.
        """
        if not 0 <= level < len(self.pyramid):
            raise ValueError(f"level is {level}, expected 0 to {len(self.pyramid) - 1}")
        mask = self.masks[level] if self.masks else None
        tokens = self.pyramid.levels[level]
        if mask is None:
            return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return mask.to(tokens.device)

    def level(self, index: int) -> tuple[Tensor, Bool[Tensor, "b n"]]:
        """Return the tokens of a level, 0 where none is given, and where they are given; errors as in `mask_of`."""
        given, tokens = self.mask_of(index), self.pyramid.levels[index]
        return tokens.masked_fill(~(given if tokens.ndim == 2 else given[..., None]), 0), given

    def is_complete(self, num_levels: int) -> bool:
        """Whether all tokens of the first levels are given (this waits for the device)."""
        return len(self.pyramid) >= num_levels and all(bool(self.mask_of(level).all()) for level in range(num_levels))

    @property
    def is_empty(self) -> bool:
        """Whether no token is given (this waits for the device)."""
        return not any(bool(self.mask_of(level).any()) for level in range(len(self.pyramid)))

    def of_levels(self, start: int, stop: int) -> Known | None:
        """Return what is given of some consecutive levels; None where the pyramid has none of them."""
        levels, specs = self.pyramid.levels[start:stop], self.pyramid.specs[start:stop]
        return Known(TokenPyramid(levels, specs), self.masks[start:stop]) if levels else None

    def to(self, device: torch.device | str) -> Known:
        """Return the same on another device."""
        masks = tuple(None if mask is None else mask.to(device) for mask in self.masks)
        return Known(self.pyramid.to(device), masks)

    def rows(self, samples: slice | Tensor) -> Known:
        """Return what is given of some samples."""
        return Known(self.pyramid[samples], tuple(None if mask is None else mask[samples] for mask in self.masks))

    def check_tokens(self) -> Known:
        """Return self if every token that is given can be one of its level (this waits for the device).

        Raises:
            ValueError: Naming the level and what it holds.
        """
        for index, (spec, level) in enumerate(zip(self.pyramid.specs, self.pyramid.levels, strict=True)):
            given = level[self.mask_of(index)]
            if spec.vocab_size is not None and given.numel() and not 0 <= given.min() <= given.max() < spec.vocab_size:
                low, high = int(given.min()), int(given.max())
                raise ValueError(
                    f"known gives ids {low} to {high} at level {index}, expected 0 to {spec.vocab_size - 1}"
                )
            if not bool(given.isfinite().all()):
                raise ValueError(f"known gives NaN or infinity at level {index}, expected finite tokens")
        return self

    def sequence(self, specs: Sequence[LevelSpec]) -> tuple[Tensor, Bool[Tensor, "b m"]]:
        """Return the tokens of some levels as one sequence, `(b, m)` or `(b, m, c)`, 0 where none is given; and where they are given.

        Args:
            specs: The levels of the sequence: those of the pyramid, and any finer ones behind them.
        """
        parts = [self.level(index) for index in range(len(self.pyramid))]
        tokens, given = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        missing = sum(spec.num_tokens for spec in specs) - given.shape[1]
        return F.pad(tokens, (0, missing) if tokens.ndim == 2 else (0, 0, 0, missing)), F.pad(given, (0, missing))

    def compose(self, made: TokenPyramid) -> TokenPyramid:
        """Return the levels that were made with the tokens that are given in their places."""
        levels = list(made.levels)
        for index, tokens in enumerate(self.pyramid.levels[: len(levels)]):
            given, own = self.mask_of(index), levels[index]
            levels[index] = torch.where(given if own.ndim == 2 else given[..., None], tokens.to(own.dtype), own)
        return TokenPyramid(tuple(levels), made.specs)


def _outside(index: int, spec: LevelSpec, mask: Tensor, share: float) -> Tensor | None:
    """Return which cells of a level a mask covers by a share or less; None for all of a level without cells, if it covers nothing."""
    grid = spec.grid or ()
    if len(grid) not in (2, 3):
        if bool(mask.any()):
            raise ValueError(
                f"level {index} has the grid {spec.grid}, expected rows and columns: its tokens have no place in the data, so that none is "
                "outside of a mask; give whole levels instead"
            )
        return None
    if len(grid) == 2 and mask.ndim == 4:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, but level {index} has the grid {grid}: expected (b, h, w)"
        )
    # A picture's mask is that of every frame.
    pixels = (mask[:, None] if len(grid) == mask.ndim == 3 else mask).float()[:, None]
    pool: Any = F.adaptive_avg_pool2d if len(grid) == 2 else F.adaptive_avg_pool3d
    return (pool(pixels, grid) <= share).flatten(1)
