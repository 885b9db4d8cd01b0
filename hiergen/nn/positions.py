"""Where tokens lie, also those of several levels on one common frame, and how positions are embedded: rotations and sinusoids.

A rotation turns the adjacent channel pair (u, v) by an angle: (u cos - v sin, u sin + v cos).

Letters: `n` tokens (of all levels), `a` position axes (rows and columns, or frames before them), `d` channels, `k` channels of an
attention head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hiergen.kernels.dispatch import is_fast_cpu


def rotary_angles(positions: Float[Tensor, "n a"], head_dim: int, *, theta: float = 10000.0) -> Float[Tensor, "n half"]:
    """Return the rotation angle of every channel pair, in radians, `half = head_dim / 2`, float64.

    The head is cut into `a` equal parts, the first turned by the first coordinate and so on; inside a part of `p` channels pair
    `j` turns with frequency `theta ** (-2 j / p)`.

    Raises:
        ValueError: If `head_dim` does not split into `a` parts of whole pairs.

    Source:
        RoFormer, arXiv:2104.09864; axial form as in ResTok, arXiv:2601.03955.
    """
    axes = positions.shape[-1]
    if head_dim % (2 * axes):
        raise ValueError(f"head_dim is {head_dim}, expected a multiple of {2 * axes} for {axes} position axes")
    part = head_dim // axes
    exponents = torch.arange(0, part, 2, dtype=torch.float64, device=positions.device) / part
    frequencies = theta**-exponents
    return (positions.double()[..., None] * frequencies).flatten(-2)


def rotary_table(
    positions: Float[Tensor, "n a"], head_dim: int, *, theta: float = 10000.0
) -> Float[Tensor, "2 n half"]:
    """Return cosines and sines of `rotary_angles`, float32, stacked: what `apply_rotary` takes."""
    angles = rotary_angles(positions, head_dim, theta=theta)
    return torch.stack((angles.cos(), angles.sin())).float()


def apply_rotary(x: Float[Tensor, "*rows k"], table: Float[Tensor, "2 *positions half"]) -> Float[Tensor, "*rows k"]:
    """Rotate the adjacent channel pairs (2m, 2m+1) of `x`: (u, v) -> (u cos - v sin, u sin + v cos).

    The positions of the table broadcast against the rows of `x`: `(2, n, half)` for heads before tokens, `(2, n, 1, half)` for
    tokens before heads. The result is contiguous.

    Computed in float32 (float64 stays float64), returned in the dtype of `x`.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    table = table.to(wide.dtype)
    if is_fast_cpu(x.device):
        # The same in a tenth of the time: one operation each way.
        turned = torch.view_as_complex(_pairs(wide)) * torch.complex(*table)
        return torch.view_as_real(turned.contiguous()).flatten(-2).to(x.dtype)
    cos, sin = table
    u, v = wide.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((u * cos - v * sin, u * sin + v * cos), dim=-1).flatten(-2).to(x.dtype)


def _pairs(x: Tensor) -> Tensor:
    """Return the channels in adjacent pairs, laid out as complex numbers are."""
    *strides, last = x.stride()
    is_fit = last == 1 and not x.storage_offset() % 2 and not any(stride % 2 for stride in strides)
    return (x if is_fit else x.clone(memory_format=torch.contiguous_format)).unflatten(-1, (-1, 2))


def pairwise_table(half_table: Float[Tensor, "2 n half"]) -> Float[Tensor, "2 n k"]:
    """Return a rotary table with each entry repeated for both channels of its pair, the form in which some models save it."""
    # Not repeat_interleave, which makes its counts on the default device and fails where that is the meta device.
    return half_table.unsqueeze(-1).expand(*half_table.shape, 2).flatten(-2)


def grid_positions(height: int, width: int, *, device: torch.device | str | None = None) -> Float[Tensor, "n 2"]:
    """Return the (row, column) of every cell of a grid, row-major."""
    rows = torch.arange(height, dtype=torch.float64, device=device)
    columns = torch.arange(width, dtype=torch.float64, device=device)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)


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
    """Return the rotary table of a head cut into one part per axis, by `split_channels`; `rotary_table` where that is even.

    Raises:
        ValueError: If `head_dim` is odd, or too small for a pair of channels per axis.
    """
    sizes = split_channels(head_dim, positions.shape[1])
    tables = [rotary_table(positions[:, axis : axis + 1], size) for axis, size in enumerate(sizes)]
    return torch.cat(tables, dim=-1)


def split_channels(dim: int, axes: int) -> list[int]:
    """Return the channels of each axis: even numbers, equal where `dim` allows it; the first axis gets what is left over.

    Raises:
        ValueError: If `dim` is odd or less than a pair per axis.
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
