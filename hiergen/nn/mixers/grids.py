"""Mixers in the place of a transformer block's self-attention, on sequences that are maps of one or several levels.

Letters: `b` batch, `n` tokens of all levels, `c` channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.nn.mixers.create import create_mixer

#: Which blocks of a transformer get a mixer.
MixerBlocks = Literal["alternate", "all"]


class GridMixer(nn.Module):
    """Mixes the map of every level by itself, with the same weights; levels do not see each other.

    Args:
        mixer: `{"name": ..., option: value, ...}`, a name of `hiergen.nn.mixers.create.MIXERS` and options of that mixer.
        dim: Channels of a token.
        num_heads: Heads, for mixers that have any.
        grids: Rows and columns of every level, in the order of the sequence.

    Raises:
        ValueError: If the mixer has no name, a name or option is unknown, or a grid has not two axes.
    """

    def __init__(self, mixer: Mapping[str, Any], dim: int, num_heads: int, grids: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        if not isinstance(mixer.get("name"), str):
            raise ValueError(
                f"mixer is {dict(mixer)}, expected an entry 'name', e.g. {{'name': 'window', 'window': 4}}"
            )
        if any(len(grid) != 2 for grid in grids):
            raise ValueError(
                f"mixer is {mixer['name']!r}, expected none on the grids {list(grids)}: it takes rows and columns"
            )
        options = {key: value for key, value in mixer.items() if key != "name"}
        self.grids = tuple((int(grid[0]), int(grid[1])) for grid in grids)
        self.mixer = create_mixer(mixer["name"], dim, num_heads=num_heads, **options)

    def forward(self, x: Float[Tensor, "b n c"], *, rotary: Any = None, attend: Any = None) -> Float[Tensor, "b n c"]:
        """Return the mixed tokens of all levels, or of the first levels alone. What attention would read is not."""
        mixed, start = [], 0
        for rows, columns in self.grids:
            if start == x.shape[1]:
                break
            level = x[:, start : start + rows * columns].unflatten(1, (rows, columns))
            mixed.append(self.mixer(level).flatten(1, 2))
            start += rows * columns
        return torch.cat(mixed, dim=1)


def grid_mixers(
    mixer: Mapping[str, Any] | None,
    blocks: MixerBlocks,
    depth: int,
    dim: int,
    num_heads: int,
    grids: Sequence[tuple[int, ...]],
) -> list[GridMixer | None]:
    """Return what takes the place of self-attention in every block of a transformer; None where attention stays.

    Args:
        mixer: As in `GridMixer`; None leaves all blocks their attention.
        blocks: Which blocks get it: "alternate" is the first and every second one.
        depth: Number of blocks.
        dim: Channels of a token.
        num_heads: Heads, for mixers that have any.
        grids: Rows and columns of every level.

    Raises:
        ValueError: If all blocks of several levels would mix each level by itself.
    """
    if blocks not in get_args(MixerBlocks) or (mixer and blocks == "all" and len(grids) > 1):
        raise ValueError(
            f"mixer_blocks is {blocks!r} with {len(grids)} levels, expected 'alternate', or 'all' with one level"
        )
    return [
        GridMixer(mixer, dim, num_heads, grids) if mixer and (blocks == "all" or index % 2 == 0) else None
        for index in range(depth)
    ]
