"""Attention with a ReLU kernel, whose cost is linear in the number of tokens, and a depthwise convolution of the values.

    q = ReLU(W_q x),  k = ReLU(W_k x + E),  v = W_v x
    y_i = q_i (sum_j k_j^T v_j) / (q_i sum_j k_j + 1e-6) + DW(v)_i

Letters: `b` batch, `h w` sides of the map, `c` channels, `heads`, `k` channels of a head, `n` tokens, `m` keys.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.nn.mixers.base import TokenMixer, check_heads
from hiergen.nn.mixers.basic import channels_last, depthwise, pad_to_multiple
from hiergen.nn.running.precision import widen, without_autocast


class LinearMixer(TokenMixer):
    """Simplified linear attention. A query whose products with all keys are zero gets the convolution alone.

    Args:
        dim: Channels of a token.
        num_heads: Attention heads; all share one depthwise convolution.
        kernel_size: Side of the depthwise convolution of the values, odd.
        grid: Rows and columns of the learned table E that is added to the keys; it is interpolated where the map of the keys is of
            another size.
        reduction: Side of the squares of tokens that one key and value stand for: a strided convolution, then a LayerNorm.
        resize: How the values of a coarser map are stretched for the convolution: "grid" is bilinear on the map; "sequence", the
            official program's, runs linearly along the flattened sequence, so that rows bleed into each other.

    Raises:
        ValueError: If a size does not fit or an option is unknown.

    Source:
        SLAB, arXiv:2405.11582.
    """

    has_heads = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        kernel_size: int = 5,
        grid: tuple[int, int] = (8, 8),
        reduction: int = 1,
        resize: Literal["grid", "sequence"] = "grid",
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}, expected an odd number")
        if min(grid) < 1 or reduction < 1:
            raise ValueError(f"grid is {grid} and reduction is {reduction}, expected at least 1")
        if resize not in ("grid", "sequence"):
            raise ValueError(f"resize is {resize!r}, expected 'grid' or 'sequence'")
        self.num_heads, self.reduction, self.resize = num_heads, reduction, resize
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.positions = nn.Parameter(torch.zeros(dim, *grid))
        self.local = depthwise(dim // num_heads, kernel_size)
        if reduction > 1:
            self.reduce = nn.Conv2d(dim, dim, reduction, reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        source = x
        if self.reduction > 1:
            source = self.norm(channels_last(self.reduce, pad_to_multiple(x, self.reduction)))
        value = self.v(source)
        query, key = self.q(x).relu(), (self.k(source) + self._table(source.shape[1], source.shape[2])).relu()
        heads = [rearrange(y, "b h w (a k) -> b a (h w) k", a=self.num_heads) for y in (query, key, value)]
        mixed = rearrange(_attend(*heads), "b a (h w) k -> b h w (a k)", h=x.shape[1]).to(value.dtype)
        return self.proj(mixed + self._convolve(value, x.shape[1], x.shape[2]))

    def _table(self, height: int, width: int) -> Tensor:
        table = self.positions[None]
        if table.shape[2:] != (height, width):
            table = F.interpolate(table, size=(height, width), mode="bilinear")
        return table[0].permute(1, 2, 0)

    def _convolve(self, value: Tensor, height: int, width: int) -> Tensor:
        maps = value.permute(0, 3, 1, 2)
        if maps.shape[2:] != (height, width):
            if self.resize == "grid":
                maps = F.interpolate(maps, size=(height, width), mode="bilinear")
            else:
                line = F.interpolate(maps.flatten(2), size=height * width, mode="linear")
                maps = line.unflatten(2, (height, width))
        each = rearrange(maps, "b (a k) h w -> (b a) k h w", a=self.num_heads)
        return rearrange(self.local(each), "(b a) k h w -> b h w (a k)", a=self.num_heads)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return linear attention `(b, heads, n, k)` in float32 at least, by whichever order of the products is cheaper."""
    with without_autocast(query.device):
        query, key, value = widen(query), widen(key), widen(value)
        total = torch.einsum("bank,bak->ban", query, key.sum(dim=2)) + 1e-6
        if query.shape[2] * key.shape[2] < query.shape[3] * (query.shape[2] + key.shape[2]):
            mixed = (query @ key.transpose(2, 3)) @ value
        else:
            mixed = query @ (key.transpose(2, 3) @ value)
        return mixed / total[..., None]
