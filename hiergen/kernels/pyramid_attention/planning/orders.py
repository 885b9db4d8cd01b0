"""Orders of the tokens of a grid in which neighbors in the sequence are neighbors in space, so that blocks are compact.

Attention does not depend on the order of its keys, and everything else in a diffusion transformer works token by token:
apply an order once before the first layer and undo it after the last, not in every layer. It does not fit causal attention.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from hiergen.kernels.pyramid_attention.config import OrderName

_Vector = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class TokenOrder:
    """A permutation of tokens and its inverse.

    Attributes:
        index: Position s of the new order holds token `index[s]` of the old one.
        inverse: Token t of the old order is at position `inverse[t]` of the new one.
    """

    index: Int[Tensor, " n"]
    inverse: Int[Tensor, " n"]

    def apply(self, x: Tensor, dim: int = 1) -> Tensor:
        """Return `x` with its tokens, along `dim`, in the new order."""
        return x.index_select(dim, self.index.to(x.device))

    def undo(self, x: Tensor, dim: int = 1) -> Tensor:
        """Return `x` with its tokens, along `dim`, in the old order."""
        return x.index_select(dim, self.inverse.to(x.device))


def token_order(
    name: OrderName,
    grid: tuple[int, int, int],
    *,
    tile: tuple[int, int, int] = (2, 8, 8),
    text_before: int = 0,
    text_after: int = 0,
) -> TokenOrder:
    """Return the order of a video's tokens, given in raster order: frames, then rows, then columns.

    Args:
        name: "gilbert" (a space-filling curve for any box), "tiles" (raster inside tiles, tiles in raster) or "raster".
        grid: Frames, rows, columns, in tokens.
        tile: Frames, rows and columns per tile of "tiles"; at the far edges tiles may be smaller.
        text_before: Tokens before the video, left in place.
        text_after: Tokens after the video, left in place.

    Raises:
        ValueError: If the name is unknown or a size is not positive.
    """
    if min(grid) < 1 or min(tile) < 1:
        raise ValueError(f"grid is {grid} and tile {tile}, expected positive sizes (frames, rows, columns)")
    if name == "gilbert":
        video = torch.tensor(_gilbert_order(grid), dtype=torch.int64)
    elif name == "tiles":
        video = torch.tensor(_tile_order(grid, tile), dtype=torch.int64)
    elif name == "raster":
        video = torch.arange(math.prod(grid))
    else:
        raise ValueError(f"order is {name!r}, expected 'gilbert', 'tiles' or 'raster'")
    end = text_before + math.prod(grid)
    index = torch.cat([torch.arange(text_before), text_before + video, torch.arange(end, end + text_after)])
    return TokenOrder(index, index.argsort())


@functools.lru_cache(maxsize=32)
def _gilbert_order(grid: tuple[int, int, int]) -> tuple[int, ...]:
    frames, rows, columns = grid
    return tuple((z * rows + y) * columns + x for x, y, z in gilbert_curve(columns, rows, frames))


@functools.lru_cache(maxsize=32)
def _tile_order(grid: tuple[int, int, int], tile: tuple[int, int, int]) -> tuple[int, ...]:
    starts = itertools.product(*(range(0, size, step) for size, step in zip(grid, tile, strict=True)))
    order = []
    for corner in starts:
        spans = (range(a, min(a + step, size)) for a, step, size in zip(corner, tile, grid, strict=True))
        order += [(t * grid[1] + y) * grid[2] + x for t, y, x in itertools.product(*spans)]
    return tuple(order)


def gilbert_curve(width: int, height: int, depth: int) -> Iterator[tuple[int, int, int]]:
    """Yield every cell of a box once, nearly always stepping to a neighbor, and never leaving a region early.

    A box is entered at one corner and left at the other end of its main edge; it is cut into boxes that follow the same
    rule, joined end to start. Odd sizes allow no unbroken curve in some boxes; there a few steps are diagonal.

    Source:
        The generalized Hilbert curve of J. Červený, from its description.
    """
    sizes = (width, height, depth)
    # The longest edge is the main one, the first of equals; the other two follow in the order x, y, z.
    longest_axis = sizes.index(max(sizes))
    axes = (longest_axis, *(axis for axis in range(3) if axis != longest_axis))
    vectors = [_along(axis, sizes[axis]) for axis in axes]
    waiting = [((0, 0, 0), *vectors)]
    while waiting:
        corner, main, side, other = waiting.pop()
        lengths = [abs(sum(vector)) for vector in (main, side, other)]
        if 0 in lengths:
            continue
        if sorted(lengths)[1] == 1:
            longest = (main, side, other)[lengths.index(max(lengths))]
            step = _unit(longest)
            for i in range(max(lengths)):
                yield _add(corner, _times(step, i))
        else:
            waiting += reversed(_cut(corner, main, side, other))


def _cut(p: _Vector, a: _Vector, b: _Vector, c: _Vector) -> list[tuple[_Vector, _Vector, _Vector, _Vector]]:
    """Return the boxes that a box is cut into, in the order of the curve, each as (corner, main, side, other)."""
    w, h, d = (abs(sum(vector)) for vector in (a, b, c))
    a1, b1, c1 = _half(a), _half(b), _half(c)
    a2, b2, c2 = _minus(a, a1), _minus(b, b1), _minus(c, c1)
    far = _add(p, _minus(a, _unit(a)))
    if 2 * w > 3 * h and 2 * w > 3 * d:
        return [(p, a1, b, c), (_add(p, a1), a2, b, c)]
    if 3 * h > 4 * d:
        back = _add(far, _minus(b1, _unit(b)))
        return [(p, b1, c, a1), (_add(p, b1), a, b2, c), (back, _times(b1, -1), c, _times(a2, -1))]
    if 3 * d > 4 * h:
        back = _add(far, _minus(c1, _unit(c)))
        return [(p, c1, a1, b), (_add(p, c1), a, b, c2), (back, _times(c1, -1), _times(a2, -1), b)]
    b_end, c_end = _minus(b1, _unit(b)), _minus(c, _unit(c))
    return [
        (p, b1, c1, a1),
        (_add(p, b1), c, a1, b2),
        (_add(p, _add(b_end, c_end)), a, _times(b1, -1), _times(c2, -1)),
        (_add(far, _add(b1, c_end)), _times(c, -1), _times(a2, -1), b2),
        (_add(far, b_end), _times(b1, -1), c1, _times(a2, -1)),
    ]


def _half(vector: _Vector) -> _Vector:
    """Return about half of an axis vector, an even number of steps where it can be.

    Half of an odd length is rounded down along an axis and up against it, so that boxes met from both sides are cut alike.
    """
    signed = sum(vector)
    half = abs(signed // 2)
    if half % 2 and abs(signed) > 2:
        half += 1
    return _times(_unit(vector), half)


def _along(axis: int, length: int) -> _Vector:
    return (length if axis == 0 else 0, length if axis == 1 else 0, length if axis == 2 else 0)


def _unit(vector: _Vector) -> _Vector:
    x, y, z = ((value > 0) - (value < 0) for value in vector)
    return (x, y, z)


def _times(vector: _Vector, factor: int) -> _Vector:
    return (vector[0] * factor, vector[1] * factor, vector[2] * factor)


def _add(a: _Vector, b: _Vector) -> _Vector:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def _minus(a: _Vector, b: _Vector) -> _Vector:
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])
