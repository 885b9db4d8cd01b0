"""Rotary position embeddings in the adjacent-pair layout that ResTok, LlamaGen and LightningDiT share.

Letters: `n` tokens, `a` position axes, `k` channels of an attention head.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


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


def apply_rotary(x: Float[Tensor, "... n k"], table: Float[Tensor, "2 n half"]) -> Float[Tensor, "... n k"]:
    """Rotate the adjacent channel pairs (2m, 2m+1) of `x`: (u, v) -> (u cos - v sin, u sin + v cos).

    Computed in float32 (float64 stays float64), returned in the dtype of `x`.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    cos, sin = table.to(wide.dtype)
    u, v = wide.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((u * cos - v * sin, u * sin + v * cos), dim=-1).flatten(-2).to(x.dtype)


def grid_positions(height: int, width: int, *, device: torch.device | str | None = None) -> Float[Tensor, "n 2"]:
    """Return the (row, column) of every cell of a grid, row-major."""
    rows = torch.arange(height, dtype=torch.float64, device=device)
    columns = torch.arange(width, dtype=torch.float64, device=device)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
