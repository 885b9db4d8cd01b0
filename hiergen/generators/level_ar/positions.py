"""Rotary positions of `LevelAR`'s input sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from hiergen.nn.positions import grid_positions, rotary_table
from hiergen.pyramid import LevelSpec


def rotary_of(kind: str, specs: tuple[LevelSpec, ...], layout: str, head_dim: int, theta: float) -> Tensor:
    """Return the rotary table of the input positions, `(2, n, head_dim / 2)`.

    Raises:
        ValueError: If the kind is unknown, or "grid" where there is none.
    """
    # On the CPU whatever the default device is, see `Constants`.
    num_tokens = sum(spec.num_tokens for spec in specs)
    if kind == "sequence":
        return rotary_table(torch.arange(num_tokens, device="cpu", dtype=torch.float64)[:, None], head_dim, theta=theta)
    if kind != "grid":
        raise ValueError(f"rotary is {kind!r}, expected 'sequence' or 'grid'")
    grid = specs[0].grid
    if len(specs) > 1 or grid is None or len(grid) != 2 or layout != "token":
        raise ValueError(
            f"rotary is 'grid', but layout is {layout!r} and the grids are {[spec.grid for spec in specs]}: "
            "expected layout 'token' and one level with rows and columns"
        )
    cells = rotary_table(grid_positions(*grid, device="cpu"), head_dim, theta=theta)
    # Not the identity: published weights were trained with cosines and sines of zero at the class.
    return torch.cat((torch.zeros_like(cells[:, :1]), cells[:, :-1]), dim=1)
