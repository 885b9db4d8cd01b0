"""Places of tokens in space, and attention that fades with the distance between a point and a token's place.

The square of a distance is a product of five numbers of the point and five of the anchor, |p - a|^2 = |p|^2 - 2 p a + |a|^2, so the
fading costs five more channels of queries and keys, no table of distances, and any backend of attention runs it.

Letters: `b` batch, `p` points, `n` anchors, `h` heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

#: Numbers of a place beside the channels of a head.
PLACE_DIM = 5


def anchor_grid(count: int) -> Float[Tensor, "n 3"]:
    """Return the centers of the cells that cut the cube [-1, 1]^3 into `count` equal cubes; the last coordinate changes first.

    Raises:
        ValueError: If `count` is no cube of a whole number.
    """
    side = round(count ** (1 / 3))
    if count < 1 or side**3 != count:
        raise ValueError(f"count is {count}, expected a cube of a whole number: 1, 8, 27, 64, ...")
    axis = (torch.arange(side) + 0.5) * (2 / side) - 1
    return torch.cartesian_prod(axis, axis, axis).view(-1, 3)


def anchor_side(anchors: Float[Tensor, "n 3"], reach: Sequence[float]) -> Float[Tensor, "1 h n 5"]:
    """Return what heads know of a grid of anchors: with `point_side`, a product of -|p - a|^2 / (2 (reach spacing)^2).

    Args:
        anchors: A grid by `anchor_grid`.
        reach: For each head the standard deviation of its fading, as a multiple of the grid's spacing; 0 does not fade.
    """
    spacing = 2 / round(len(anchors) ** (1 / 3))
    slopes = torch.tensor([0.5 / (one * spacing) ** 2 if one else 0.0 for one in reach], device=anchors.device)
    square = anchors.square().sum(dim=-1, keepdim=True)
    one = torch.ones_like(square)
    return (slopes[:, None, None] * torch.cat((2 * anchors, -square, -one), dim=-1))[None]


def point_side(points: Float[Tensor, "b p 3"]) -> Float[Tensor, "b 1 p 5"]:
    """Return what every head knows of the place of points; see `anchor_side`."""
    square = points.square().sum(dim=-1, keepdim=True)
    return torch.cat((points, torch.ones_like(square), square), dim=-1)[:, None]
