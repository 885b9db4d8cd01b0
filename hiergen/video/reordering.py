"""Put a video's tokens in an order of compact blocks at a transformer's entrance, and back at its exit."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from hiergen.kernels.pyramid_attention import TokenOrder, token_order
from hiergen.kernels.pyramid_attention.config import OrderName

Grid = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Entrance:
    """What one forward pass does with its tokens.

    Attributes:
        order: New order of the video tokens.
        batch: Number of videos in the pass.
    """

    order: TokenOrder
    batch: int

    @property
    def num_tokens(self) -> int:
        return self.order.index.shape[0]


def order_tokens(name: OrderName, grid: Grid, like: Tensor, *, fixed_frames: int = 0) -> TokenOrder:
    """Return the order of a grid's tokens on the device of `like`, computed once per grid; it is one node of a compiled graph.

    Args:
        fixed_frames: First frames whose tokens stay where they are.
    """
    both = token_order_op(like, *grid, name, fixed_frames)
    return TokenOrder(both[0], both[1])


@torch.library.custom_op(
    "hiergen::token_order",
    mutates_args=(),
    schema="(Tensor like, int frames, int rows, int columns, str name, int fixed_frames) -> Tensor",
)
def token_order_op(like: Tensor, frames: int, rows: int, columns: int, name: str, fixed_frames: int) -> Tensor:
    """Return index and inverse of a `TokenOrder`, (2, n)."""
    # A copy: the caller of an operator may write into its result.
    return _stored_order(name, (frames, rows, columns), fixed_frames, like.device).clone()


@token_order_op.register_fake
def _token_order_fake(like: Tensor, frames: int, rows: int, columns: int, name: str, fixed_frames: int) -> Tensor:
    return like.new_empty((2, frames * rows * columns), dtype=torch.int64)


@functools.lru_cache(maxsize=16)
def _stored_order(name: OrderName, grid: Grid, fixed_frames: int, device: torch.device) -> Tensor:
    frames, rows, columns = grid
    if frames > fixed_frames:
        order = token_order(name, (frames - fixed_frames, rows, columns), text_before=fixed_frames * rows * columns)
    else:
        order = token_order("raster", grid)
    return torch.stack([order.index, order.inverse]).to(device)


def reorder_volume(entrance: Entrance, features: Tensor) -> Tensor:
    """Return (b, d, frames, rows, columns) with its cells moved so that flattening gives the tokens in the new order."""
    return entrance.order.apply(features.flatten(2), dim=2).unflatten(2, features.shape[2:])


def reorder_tokens(entrance: Entrance, tokens: Tensor) -> Tensor:
    """Return (b, n, d) in the new order; tokens before the video's (text) stay."""
    text = tokens.shape[1] - entrance.num_tokens
    video = entrance.order.apply(tokens[:, text:])
    return torch.cat([tokens[:, :text], video], dim=1) if text else video


def reorder_flat_tables(entrance: Entrance, tables: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return rotary tables (n, k) in the new order."""
    return tuple(entrance.order.apply(table, dim=0) for table in tables)


def reorder_batched_tables(entrance: Entrance, tables: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return rotary tables (b or 1, n, ...) in the new order."""
    return tuple(entrance.order.apply(table) for table in tables)


def reorder_wan_modulation(entrance: Entrance, outputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return Wan's conditions; where every token has its own timestep, the modulation of the blocks is in the new order.

    The first output, for the last layer, stays as it is: it meets the tokens after they were put back.
    """
    embedded, modulation, *rest = outputs
    return embedded, entrance.order.apply(modulation) if modulation.dim() == 3 else modulation, *rest


def reorder_ltx_modulation(entrance: Entrance, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return LTX's (b or b·n, d) modulation of the blocks in the new order; that of its last layer stays as it is."""
    modulation, embedded = outputs
    by_token = modulation.unflatten(0, (entrance.batch, -1))
    if by_token.shape[1] == entrance.num_tokens:
        modulation = entrance.order.apply(by_token).flatten(0, 1)
    return modulation, embedded
