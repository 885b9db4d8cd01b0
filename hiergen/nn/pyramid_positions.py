"""Where the tokens of several levels lie on one common frame, and how such positions are embedded. Levels are maps or videos.

Letters: `n` tokens of all levels, `a` axes (rows and columns, or frames before them), `d` channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hiergen.nn.positions import rotary_table


def common_frame_positions(grids: Sequence[tuple[int, ...]]) -> Float[Tensor, "n a"]:
    """Return the (row, column) or (frame, row, column) of every token of every level in cells of the finest level, float64.

    Token (r, c) of an (h, w) level covers a rectangle of the finest (H, W) grid; its position is that rectangle's center,
    ((r + 1/2) H / h - 1/2, (c + 1/2) W / w - 1/2). So tokens of different levels that show the same place are neighbors.

    Args:
        grids: Sizes of each level along every axis, coarse to fine, row-major; the last is the frame.
    """
    frame = _sizes(grids[-1])
    return torch.cat([(_cells(grid) + 0.5) * (frame / _sizes(grid)) - 0.5 for grid in grids])


def sincos_embedding(positions: Float[Tensor, "n a"], dim: int) -> Float[Tensor, "n d"]:
    """Return the fixed embedding of positions, float32.

    The first part of the channels encodes the column, the second the row, the third, in a video, the frame: halves, or the parts
    of `split_channels`. A part of p channels is [sin | cos] of the coordinate times `10000 ** (-k / (p / 2))`.

    Raises:
        ValueError: If `dim` is no multiple of 4 for two axes, of 2 for three.

    Source:
        Vision transformers of the MAE and DiT line, arXiv:2212.09748; the column comes first there.
    """
    axes = positions.shape[1]
    if dim % (4 if axes == 2 else 2):
        raise ValueError(
            f"dim is {dim}, expected a multiple of {4 if axes == 2 else 2} for a sine-cosine embedding of {axes} axes"
        )
    parts = []
    for axis, channels in reversed(list(enumerate(split_channels(dim, axes)))):
        exponents = torch.arange(channels // 2, dtype=torch.float64, device=positions.device) / (channels // 2)
        angles = positions[:, axis, None].double() * 10000.0**-exponents
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=1).float()


def axial_rotary_table(positions: Float[Tensor, "n a"], head_dim: int) -> Float[Tensor, "2 n half"]:
    """Return the rotary table of a head cut into one part an axis, by `split_channels`; `rotary_table` where that is even.

    Raises:
        ValueError: If `head_dim` is odd, or too small for a pair of channels an axis.
    """
    sizes = split_channels(head_dim, positions.shape[1])
    tables = [rotary_table(positions[:, axis : axis + 1], size) for axis, size in enumerate(sizes)]
    return torch.cat(tables, dim=-1)


def split_channels(dim: int, axes: int) -> list[int]:
    """Return the channels of each axis: even numbers, equal where `dim` allows it; the first axis gets what is left over.

    Raises:
        ValueError: If `dim` is odd or less than a pair an axis.
    """
    if dim % 2 or dim < 2 * axes:
        raise ValueError(f"dim is {dim}, expected an even number of at least {2 * axes} for {axes} position axes")
    part = 2 * (dim // (2 * axes))
    return [dim - part * (axes - 1), *[part] * (axes - 1)]


def _cells(grid: tuple[int, ...]) -> Tensor:
    # On the CPU whatever the default device is: a model built on the meta device needs its positions all the same.
    axes = [torch.arange(size, dtype=torch.float64, device="cpu") for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def _sizes(grid: tuple[int, ...]) -> Tensor:
    return torch.tensor(grid, dtype=torch.float64, device="cpu")
