"""One map of tokens -> the sequence of its averages at several resolutions.

Letters: `b` batch, `n` tokens of the map, `m` tokens of all levels, `d` channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

PoolKind = Literal["area", "strided_conv", "bilinear"]


class PyramidPool(nn.Module):
    """The levels of an s x s map for every s of `sides`, coarse to fine; the finest is the map itself.

    Args:
        dim: Channels of a token.
        sides: Increasing sides; the last is the map's.
        kind: "area" averages, "bilinear" interpolates with an antialiasing triangle, "strided_conv" learns a convolution from each
            level to the next coarser one, which starts as the average.

    Raises:
        ValueError: If the kind is unknown, or "strided_conv" meets a side that is no multiple of the next coarser one.
    """

    def __init__(self, dim: int, sides: Sequence[int], *, kind: PoolKind = "area") -> None:
        super().__init__()
        if kind not in get_args(PoolKind):
            raise ValueError(f"pool is {kind!r}, expected one of {get_args(PoolKind)}")
        self.sides = tuple(sides)
        self.kind = kind
        self.convs = nn.ModuleList()
        if kind == "strided_conv":
            for coarse, fine in itertools.pairwise(self.sides):
                if fine % coarse:
                    raise ValueError(f"pool 'strided_conv' needs each scale to divide the next, got {self.sides}")
                self.convs.append(nn.Conv2d(dim, dim, fine // coarse, stride=fine // coarse))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make learned convolutions averages."""
        for conv in self.convs:
            assert isinstance(conv, nn.Conv2d)
            area = conv.kernel_size[0] * conv.kernel_size[1]
            identity = torch.eye(conv.in_channels)[:, :, None, None] / area
            with torch.no_grad():
                conv.weight.copy_(identity.expand_as(conv.weight))
                nn.init.zeros_(conv.bias if conv.bias is not None else torch.empty(0))

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b m d"]:
        """Return all levels of a row-major map as one sequence."""
        side = self.sides[-1]
        fine = rearrange(tokens, "b (h w) d -> b d h w", h=side, w=side)
        levels = [fine]
        for index in reversed(range(len(self.sides) - 1)):
            levels.append(self._pool(fine, levels[-1], index))
        return torch.cat([rearrange(level, "b d h w -> b (h w) d") for level in reversed(levels)], dim=1)

    def _pool(self, fine: Tensor, previous: Tensor, index: int) -> Tensor:
        side = self.sides[index]
        if self.kind == "strided_conv":
            return self.convs[index](previous)
        if self.kind == "area":
            return F.adaptive_avg_pool2d(fine, side)
        return F.interpolate(fine, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
