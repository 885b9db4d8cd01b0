"""Factorized attention: some channels attend to a coarse map, the others to 49 averages over windows, near or dilated.

Letters: `b` batch, `h w` sides of the map, `c` channels, `heads`, `k` channels of a head, `n` tokens, `p` windows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.kernels.attention import attention
from hiergen.nn.mixers.base import TokenMixer
from hiergen.nn.mixers.basic import channels_last, depthwise, pad_to_multiple

#: Side of the windows, in tokens.
_WINDOW = 7


class FactorizedMixer(TokenMixer):
    """FaViT's attention. Every query sees the same 49 averages of a group, so nothing in it is local.

    With `reduction` above 1 the channels are cut in the ratio 2 : 7 : 7 (global, near, dilated by `reduction`), else 1 : 7 (global, near).
    Maps that are no multiple of a window are filled up with zeros, which no average counts.

    Args:
        dim: Channels of a token, a multiple of 16, or of 8 without reduction.
        num_heads: Heads of the window groups; the global group has one.
        reduction: Side of the squares that a key of the global group stands for, and the dilation of the second window group.
        official_mean: Average as the official program does, over runs of consecutive numbers of a (window, channel) axis, after padding
            by reflection. That mixes channels, and does not run on maps that are smaller than the padding.

    Raises:
        ValueError: If the channels cannot be cut so.

    Source:
        FaViT, arXiv:2312.08614.
    """

    has_heads = True

    def __init__(self, dim: int, num_heads: int, *, reduction: int = 1, official_mean: bool = False) -> None:
        super().__init__()
        parts = 16 if reduction > 1 else 8
        if reduction < 1 or dim % parts:
            raise ValueError(
                f"dim is {dim}, expected a multiple of {parts} with a reduction of {reduction}, at least 1"
            )
        if num_heads < 1 or 7 * dim // parts % num_heads:
            raise ValueError(
                f"num_heads is {num_heads}, expected a divisor of the {7 * dim // parts} channels of a group"
            )
        self.dilations = (1, reduction) if reduction > 1 else (1,)
        self.global_dim, group_dim = dim // 8, 7 * dim // parts
        self.reduction, self.num_heads, self.official_mean = reduction, num_heads, official_mean
        self.q, self.proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.reduce = nn.Conv2d(self.global_dim, self.global_dim, reduction, reduction)
        self.norm = nn.LayerNorm(self.global_dim)
        self.kv = nn.Linear(self.global_dim, 2 * self.global_dim)
        self.local = depthwise(self.global_dim, 3)
        rest = dim - self.global_dim
        self.spread = nn.Sequential(depthwise(rest, 3), nn.Conv2d(rest, rest, 1))
        self.groups = nn.ModuleList(_WindowGroup(group_dim, num_heads) for _ in self.dilations)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        height, width = x.shape[1:3]
        query = rearrange(self.q(x), "b h w c -> b (h w) c")
        groups = [self._attend_globally(query[..., : self.global_dim], x[..., : self.global_dim])]
        maps = channels_last(self.spread, x[..., self.global_dim :]).chunk(len(self.dilations), dim=3)
        # The heads are cut before the groups.
        heads = rearrange(query[..., self.global_dim :], "b n (heads k) -> b heads n k", heads=self.num_heads)
        for part, source, dilation, group in zip(
            heads.chunk(len(self.dilations), dim=3), maps, self.dilations, self.groups, strict=True
        ):
            cells, known = _window_means(source, dilation, self.num_heads, self.official_mean)
            groups.append(group(part, cells, known))
        return self.proj(torch.cat(groups, dim=-1).unflatten(1, (height, width)))

    def _attend_globally(self, query: Tensor, x: Tensor) -> Tensor:
        coarse = self.norm(channels_last(self.reduce, pad_to_multiple(x, self.reduction)))
        key, value = self.kv(coarse).chunk(2, dim=-1)
        value = value + channels_last(self.local, value)
        return attention(query[:, None], key.flatten(1, 2)[:, None], value.flatten(1, 2)[:, None])[:, 0]


class _WindowGroup(nn.Module):
    """Queries of all tokens to the averages over windows."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        head = dim // num_heads
        self.kv = nn.Sequential(nn.Linear(head, head), nn.Linear(head, 2 * head))
        self.local = depthwise(dim, 3)

    def forward(self, query: Tensor, cells: Float[Tensor, "b heads n k"], known: Tensor) -> Tensor:
        key, value = self.kv(cells).chunk(2, dim=-1)
        heads = cells.shape[1]
        grid = rearrange(value, "b heads (y x) k -> b (heads k) y x", y=_WINDOW)
        value = value + rearrange(self.local(grid), "b (heads k) y x -> b heads (y x) k", heads=heads)
        mixed = attention(query, key, value, mask=known[None].expand(query.shape[2], -1))
        return rearrange(mixed, "b heads n k -> b n (heads k)")


def _window_means(x: Tensor, dilation: int, heads: int, official: bool) -> tuple[Tensor, Tensor]:
    """Return the averages of the 49 places over all windows, `(b, heads, 49, k)`, and which of them stand for any token."""
    height, width = x.shape[1:3]
    span = dilation * (_WINDOW - 1) + 1
    bottom, right = -height % span, -width % span
    if official:
        if bottom >= height or right >= width:
            raise ValueError(
                f"the map has {height} x {width} tokens, expected more than {bottom} x {right} with official_mean, which reflects "
                f"so many to reach multiples of {span}"
            )
        padded = F.pad(x.permute(0, 3, 1, 2), (0, right, 0, bottom), mode="reflect")
        windows = _unfold(padded, span, dilation)
        flat = rearrange(windows, "b (heads k) n p -> b heads n (p k)", heads=heads)
        cells = reduce(flat, "b heads n (k p) -> b heads n k", "mean", k=x.shape[3] // heads)
        return cells, torch.ones(_WINDOW**2, dtype=torch.bool, device=x.device)
    windows = _unfold(F.pad(x.permute(0, 3, 1, 2), (0, right, 0, bottom)), span, dilation)
    counts = _unfold(F.pad(x.new_ones(1, 1, height, width), (0, right, 0, bottom)), span, dilation).sum(dim=-1)
    means = windows.sum(dim=-1) / counts.clamp(min=1)
    return rearrange(means, "b (heads k) n -> b heads n k", heads=heads), counts[0, 0] > 0


def _unfold(maps: Tensor, span: int, dilation: int) -> Tensor:
    """Return windows `(b, c, 49, p)` that tile a map whose sides are multiples of `span`."""
    flat = F.unfold(maps, _WINDOW, dilation=dilation, stride=span)
    return flat.unflatten(1, (maps.shape[1], _WINDOW**2))
