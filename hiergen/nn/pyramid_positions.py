"""Where the tokens of several 2-D levels lie on one common frame, and the sine-cosine embedding of such positions.

Letters: `n` tokens of all levels, `d` channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hiergen.nn.positions import grid_positions


def common_frame_positions(grids: Sequence[tuple[int, int]]) -> Float[Tensor, "n 2"]:
    """Return the (row, column) of every token of every level in cells of the finest level, float64.

    Token (r, c) of an (h, w) level covers a rectangle of the finest (H, W) grid; its position is that rectangle's center,
    ((r + 1/2) H / h - 1/2, (c + 1/2) W / w - 1/2). So tokens of different levels that show the same place are neighbors.

    Args:
        grids: Rows and columns of each level, coarse to fine, row-major; the last is the frame.
    """
    frame = _pair(grids[-1])
    # On the CPU whatever the default device is: a model built on the meta device needs its positions all the same.
    return torch.cat([(grid_positions(*grid, device="cpu") + 0.5) * (frame / _pair(grid)) - 0.5 for grid in grids])


def sincos_embedding(positions: Float[Tensor, "n 2"], dim: int) -> Float[Tensor, "n d"]:
    """Return the fixed embedding of (row, column) positions, float32.

    The first half of the channels encodes the column, the second half the row; each half is [sin | cos] of the coordinate times
    `10000 ** (-k / (dim / 4))`.

    Raises:
        ValueError: If `dim` is no multiple of 4.

    Source:
        Vision transformers of the MAE and DiT line, arXiv:2212.09748; the column comes first there.
    """
    if dim % 4:
        raise ValueError(f"dim is {dim}, expected a multiple of 4 for a two-dimensional sine-cosine embedding")
    exponents = torch.arange(dim // 4, dtype=torch.float64, device=positions.device) / (dim // 4)
    frequencies = 10000.0**-exponents
    halves = [positions[:, axis, None].double() * frequencies for axis in (1, 0)]
    return torch.cat([part for angles in halves for part in (angles.sin(), angles.cos())], dim=1).float()


def _pair(grid: tuple[int, int]) -> Tensor:
    return torch.tensor(grid, dtype=torch.float64, device="cpu")
