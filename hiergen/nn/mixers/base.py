"""What every token mixer is: a map of tokens in, a map of the same shape out, and a statement of which tokens see which.

Letters: `b` batch, `h w` sides of the map, `c` channels of a token.
"""

from __future__ import annotations

import abc
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class TokenMixer(nn.Module, abc.ABC):
    """Mixes the tokens of a map, channels last. There is no norm, no residual and no drop path inside: the block around it has them.

    Attributes:
        batch_independent: Whether a sample's output depends on that sample alone, in train mode too.
    """

    batch_independent: bool = True

    #: Whether the mixer has heads, and `create_mixer` hands `num_heads` to it.
    has_heads: ClassVar[bool] = False

    @abc.abstractmethod
    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Return the mixed tokens; maps of every size from 1 x 1 are taken."""

    def reach(self, height: int, width: int) -> Bool[Tensor, "n n"] | None:
        """Return True where the output at a position (row) may depend on the input at another (column), row-major; None for all."""
        return None


def check_heads(dim: int, num_heads: int) -> None:
    """Check that the channels can be cut into heads.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.
    """
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads is {num_heads}, expected a divisor of dim {dim}")


def check_odd(name: str, size: int) -> None:
    """Check a size that must have a middle.

    Raises:
        ValueError: If it is not odd and positive.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"{name} is {size}, expected an odd number")


def join_axes(rows: Bool[Tensor, "h h"], columns: Bool[Tensor, "w w"]) -> Bool[Tensor, "n n"]:
    """Return which positions of a map see which, where a row's and a column's part must both allow it."""
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2).flatten(0, 1)


def within(distance: int, length: int) -> Bool[Tensor, "n n"]:
    """Return True where two positions of an axis are at most `distance` apart."""
    places = torch.arange(length)
    return (places[:, None] - places).abs() <= distance
