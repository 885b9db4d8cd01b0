"""The common mixers: none at all, a depthwise convolution, attention over the whole map, and attention inside windows.

Letters: `b` batch, `h w` sides of the map, `c` channels, `heads`, `k` channels of a head, `n` tokens.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hiergen.kernels.attention import attention
from hiergen.nn.mixers.base import TokenMixer, check_heads, check_odd, join_axes, within

Projection = Literal["linear", "convolution"]


class NoMixer(TokenMixer):
    """A linear layer of every token alone: the control that mixes nothing."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        return self.proj(x)

    def reach(self, height: int, width: int) -> Bool[Tensor, "n n"]:
        return torch.eye(height * width, dtype=torch.bool)


class DepthwiseMixer(TokenMixer):
    """proj(DW(x)): ConvNeXt's depthwise convolution, then a linear layer.

    Args:
        dim: Channels of a token.
        kernel_size: Side of the convolution, odd.
    """

    def __init__(self, dim: int, *, kernel_size: int = 7) -> None:
        super().__init__()
        check_odd("kernel_size", kernel_size)
        self.kernel_size = kernel_size
        self.conv = depthwise(dim, kernel_size)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        return self.proj(channels_last(self.conv, x))

    def reach(self, height: int, width: int) -> Bool[Tensor, "n n"]:
        radius = self.kernel_size // 2
        return join_axes(within(radius, height), within(radius, width))


class AttentionMixer(TokenMixer):
    """proj(attend(q, k, v) + local(v)): attention over the whole map, with keys of a coarser map where `reduction` is above 1.

    Args:
        dim: Channels of a token.
        num_heads: Attention heads.
        reduction: Side of the squares of tokens that one key and value stand for (PVT): a strided convolution, then a LayerNorm. Maps
            are padded with zeros to a multiple of it, right and below.
        projection: "convolution" puts a 3 x 3 depthwise convolution and a norm before each of the projections (CvT), of stride 2
            for keys and values.
        norm: Norm after these convolutions: "layer", or CvT's own "batch", which makes samples depend on each other in training.
        scale: Scores are multiplied by k^-1/2 ("head") or, as CvT's program does, by c^-1/2 ("width").
        local: Add a 3 x 3 depthwise convolution of the values, which tells attention where tokens are.

    Raises:
        ValueError: If a size does not fit, an option is unknown, or values of a coarser map are to be added.

    Source:
        PVT, arXiv:2102.12122; CvT, arXiv:2103.15808.
    """

    has_heads = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        reduction: int = 1,
        projection: Projection = "linear",
        norm: Literal["layer", "batch"] = "layer",
        scale: Literal["head", "width"] = "head",
        local: bool = False,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if reduction < 1:
            raise ValueError(f"reduction is {reduction}, expected at least 1")
        for name, value, known in (
            ("projection", projection, get_args(Projection)),
            ("norm", norm, ("layer", "batch")),
            ("scale", scale, ("head", "width")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, expected one of {known}")
        if projection == "convolution" and reduction > 1:
            raise ValueError(f"reduction is {reduction}, expected 1 with projection='convolution', which reduces by 2")
        if local and (reduction > 1 or projection == "convolution"):
            raise ValueError("local is True, expected False where keys and values are of a coarser map")
        self.num_heads = num_heads
        self.scale = (dim if scale == "width" else dim // num_heads) ** -0.5
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.reduce = _Reduction(dim, reduction) if reduction > 1 else nn.Identity()
        self.local = depthwise(dim, 3) if local else None
        self.before: nn.ModuleList | None = None
        if projection == "convolution":
            self.batch_independent = norm == "layer"
            self.before = nn.ModuleList(_ConvolutionalProjection(dim, stride, norm) for stride in (1, 2, 2))

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        height = x.shape[1]
        if self.before is not None:
            inputs = [project(x) for project in self.before]
        else:
            coarse = self.reduce(x)
            inputs = [x, coarse, coarse]
        query, key, value = (project(y) for project, y in zip((self.q, self.k, self.v), inputs, strict=True))
        local = 0 if self.local is None else channels_last(self.local, value)
        query, key, value = (
            rearrange(y, "b h w (heads k) -> b heads (h w) k", heads=self.num_heads) for y in (query, key, value)
        )
        mixed = attention(query, key, value, scale=self.scale)
        return self.proj(rearrange(mixed, "b heads (h w) k -> b h w (heads k)", h=height) + local)


class WindowMixer(TokenMixer):
    """Attention inside square windows with a learned bias per offset of two tokens (Swin).

    A shift moves the borders of the windows down and right; what it cuts off at the edges of the map are windows of their own. This
    equals Swin's roll with its mask. A map that is no larger than a window along an axis is not cut along it.

    Args:
        dim: Channels of a token.
        num_heads: Attention heads.
        window: Side of the windows, in tokens.
        shift: By how many tokens the borders are moved, 0 to `window - 1`; Swin alternates 0 and half a window.
        local: Add a 3 x 3 depthwise convolution of the values.

    Raises:
        ValueError: If a size does not fit.

    Source:
        Swin, arXiv:2103.14030.
    """

    has_heads = True

    def __init__(self, dim: int, num_heads: int, *, window: int = 7, shift: int = 0, local: bool = False) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if window < 1:
            raise ValueError(f"window is {window}, expected at least 1")
        if not 0 <= shift < window:
            raise ValueError(f"shift is {shift}, expected 0 to {window - 1}, below the window")
        self.num_heads, self.window, self.shift = num_heads, window, shift
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.empty(num_heads, 2 * window - 1, 2 * window - 1))
        nn.init.trunc_normal_(self.bias, std=0.02)
        self.local = depthwise(dim, 3) if local else None

    def _cut(self, length: int) -> tuple[int, int, int]:
        """Return the side of the windows of an axis, and how many empty places stand before and behind it."""
        window = min(self.window, length)
        before = (window - self.shift) % window if length > self.window else 0
        return window, before, -(length + before) % window

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        height, width = x.shape[1:3]
        (rows, top, bottom), (columns, left, right) = self._cut(height), self._cut(width)
        query, key, value = rearrange(self.qkv(x), "b h w (three c) -> three b h w c", three=3)
        local = 0 if self.local is None else channels_last(self.local, value)
        margins = (0, 0, left, right, top, bottom)
        layout = "b (y p) (x q) (heads k) -> b (y x) heads (p q) k"
        query, key, value = (
            rearrange(F.pad(part, margins), layout, p=rows, q=columns, heads=self.num_heads)
            for part in (query, key, value)
        )
        scores = _offset_bias(self.bias, rows, columns)
        if any(margins):
            real = F.pad(x.new_ones(1, height, width, self.num_heads), margins)
            absent = rearrange(real, layout, p=rows, q=columns, heads=self.num_heads)[..., 0] == 0
            # Not minus infinity: a window may be empty, and what it says is cut off.
            scores = torch.where(absent[:, :, :, None], -1e4, scores)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=scores.to(query.dtype))
        grown = rearrange(
            mixed, "b (y x) heads (p q) k -> b (y p) (x q) (heads k)", y=(height + top + bottom) // rows, p=rows
        )
        return self.proj(grown[:, top : top + height, left : left + width] + local)

    def reach(self, height: int, width: int) -> Bool[Tensor, "n n"]:
        axes = []
        for length in (height, width):
            window, before, _ = self._cut(length)
            names = (torch.arange(length) + before) // window
            axes.append(names[:, None] == names)
        seen = join_axes(*axes)
        if self.local is None:
            return seen
        return seen | join_axes(within(1, height), within(1, width))


class _Reduction(nn.Module):
    """Squares of tokens to one token each, and a LayerNorm; zeros fill up the last squares."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.conv = nn.Conv2d(dim, dim, side, side)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(channels_last(self.conv, pad_to_multiple(x, self.side)))


class _ConvolutionalProjection(nn.Module):
    """A depthwise 3 x 3 convolution without bias, then a norm."""

    def __init__(self, dim: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride, 1, groups=dim, bias=False)
        self.norm: nn.Module = nn.LayerNorm(dim) if norm == "layer" else nn.BatchNorm2d(dim)
        self.is_batch = norm == "batch"

    def forward(self, x: Tensor) -> Tensor:
        if self.is_batch:
            return channels_last(nn.Sequential(self.conv, self.norm), x)
        return self.norm(channels_last(self.conv, x))


def depthwise(dim: int, kernel_size: int) -> nn.Conv2d:
    """Return a depthwise convolution that keeps the map's size, with a bias."""
    return nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)


def channels_last(layer: nn.Module, x: Float[Tensor, "b h w c"]) -> Tensor:
    """Return what a layer of maps `(b, c, h, w)` makes of a map with its channels last."""
    return layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def pad_to_multiple(x: Float[Tensor, "b h w c"], side: int) -> Tensor:
    """Return the map with zeros right and below, up to a multiple of `side`."""
    height, width = x.shape[1:3]
    return F.pad(x, (0, 0, 0, -width % side, 0, -height % side))


def _offset_bias(table: Tensor, rows: int, columns: int) -> Tensor:
    """Return the bias of all pairs of a window, `(heads, n, n)`, from a table of offsets that is as large or larger."""
    places = [torch.arange(count, device=table.device) for count in (rows, columns)]
    down, across = (line[:, None] - line + table.shape[1] // 2 for line in places)
    pairs = table[:, down[:, None, :, None], across[None, :, None, :]]
    return rearrange(pairs, "heads p q y x -> heads (p q) (y x)")
