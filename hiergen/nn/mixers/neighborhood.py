"""Dilated neighborhood attention: every token attends to the same number of keys around it, at the borders too.

Along an axis, position i has the residue g = i mod dilation and the place p = i // dilation among the positions of that residue. Its window
is the `kernel` places nearest to p that exist: it moves inward at a border and is not cut. The keys of a token are the product of both axes.

Letters: `b` batch, `h w` sides of the map, `c` channels, `heads`, `k` channels of a head, `t` keys along an axis.
"""

from __future__ import annotations

from typing import Literal, get_args, no_type_check

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hiergen.nn.mixers.base import TokenMixer, check_heads, check_odd, join_axes, within
from hiergen.nn.mixers.basic import channels_last, depthwise

Backend = Literal["gather", "flex"]


class NeighborhoodMixer(TokenMixer):
    """Attention to a window of `kernel` x `kernel` keys, `dilation` apart, with a learned bias per offset.

    Args:
        dim: Channels of a token.
        num_heads: Attention heads.
        kernel: Side of the window, odd.
        dilation: Distance of neighboring keys.
        small_maps: On a map whose side is below kernel x dilation, "clamp" takes a smaller window and dilation along that axis (a window
            as long as the axis sees all of it). "pad" is what published weights need: zeros right and below before the projection, which
            are attended to.
        backend: "gather" collects the keys of every token; "flex" is FlexAttention with a mask, which is compiled on a GPU, and on a CPU
            has no gradients.
        local: Add a 3 x 3 depthwise convolution of the values.

    Raises:
        ValueError: If a size does not fit or an option is unknown.

    Source:
        NAT, arXiv:2204.07143; DiNAT, arXiv:2209.15001.
    """

    has_heads = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        kernel: int = 7,
        dilation: int = 1,
        small_maps: Literal["clamp", "pad"] = "clamp",
        backend: Backend = "gather",
        local: bool = False,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_odd("kernel", kernel)
        if dilation < 1:
            raise ValueError(f"dilation is {dilation}, expected at least 1")
        if small_maps not in ("clamp", "pad"):
            raise ValueError(f"small_maps is {small_maps!r}, expected 'clamp' or 'pad'")
        if backend not in get_args(Backend):
            raise ValueError(f"backend is {backend!r}, expected one of {get_args(Backend)}")
        self.num_heads, self.kernel, self.dilation = num_heads, kernel, dilation
        self.small_maps, self.backend = small_maps, backend
        self.qkv = nn.Linear(dim, 3 * dim)
        self.rpb = nn.Parameter(torch.empty(num_heads, 2 * kernel - 1, 2 * kernel - 1))
        self.proj = nn.Linear(dim, dim)
        for table in (self.rpb, self.qkv.weight, self.proj.weight):
            nn.init.trunc_normal_(table, std=0.02)
        for layer in (self.qkv, self.proj):
            nn.init.zeros_(layer.bias)
        self.local = depthwise(dim, 3) if local else None

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        height, width = x.shape[1:3]
        if self.small_maps == "pad":
            least = self.kernel * self.dilation
            x = F.pad(x, (0, 0, 0, max(0, least - width), 0, max(0, least - height)))
        query, key, value = rearrange(
            self.qkv(x), "b h w (three heads k) -> three b heads h w k", three=3, heads=self.num_heads
        )
        query = query * query.shape[-1] ** -0.5
        attend = self._gather if self.backend == "gather" else self._flex
        mixed = rearrange(attend(query, key, value), "b heads h w k -> b h w (heads k)")
        if self.local is not None:
            mixed = mixed + channels_last(self.local, rearrange(value, "b heads h w k -> b h w (heads k)"))
        return self.proj(mixed[:, :height, :width])

    def _axis(self, length: int) -> tuple[int, int]:
        """Return kernel and dilation of an axis."""
        kernel = min(self.kernel, length)
        return kernel, min(self.dilation, max(1, length // kernel))

    def _keys(self, length: int, device: torch.device | None = None) -> tuple[Int[Tensor, "n t"], Int[Tensor, "n t"]]:
        """Return the keys of every position of an axis, and their rows of the table of offsets."""
        kernel, dilation = self._axis(length)
        places = torch.arange(length, device=device)
        slots = _first_slots(places, length, kernel, dilation)[:, None] + torch.arange(kernel, device=device)
        return (places % dilation)[:, None] + dilation * slots, slots - (places // dilation)[:, None] + self.kernel - 1

    def _gather(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        (rows, down), (columns, across) = (self._keys(length, query.device) for length in query.shape[2:4])
        near = (slice(None), slice(None), rows[:, None, :, None], columns[None, :, None, :])
        bias = self.rpb[:, down[:, None, :, None], across[None, :, None, :]]
        scores = torch.einsum("bahwk,bahwstk->bahwst", query, key[near]) + bias
        weights = scores.flatten(-2).softmax(dim=-1).view_as(scores).to(value.dtype)
        return torch.einsum("bahwst,bahwstk->bahwk", weights, value[near])

    def _flex(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if query.device.type == "cpu" and torch.is_grad_enabled() and query.requires_grad:
            raise RuntimeError("backend is 'flex', which has no gradients on a CPU: take 'gather' there")
        from torch.nn.attention.flex_attention import create_block_mask

        from hiergen.kernels.pyramid_attention.backends.flex import flex_call

        height, width = query.shape[2:4]
        (rows, y_step), (columns, x_step) = self._axis(height), self._axis(width)
        places = [torch.arange(length, device=query.device) for length in (height, width)]
        # Run-time checkers of annotations keep a record that FlexAttention's tracing may not touch, hence `no_type_check`.
        top = _first_slots(places[0], height, rows, y_step)
        left = _first_slots(places[1], width, columns, x_step)
        table, last = self.rpb, 2 * self.kernel - 2

        @no_type_check
        def mask_mod(b: Tensor, head: Tensor, q: Tensor, n: Tensor) -> Tensor:
            y, x, v, u = q // width, q % width, n // width, n % width
            same = (y % y_step == v % y_step) & (x % x_step == u % x_step)
            down, across = v // y_step - top[y], u // x_step - left[x]
            return same & (down >= 0) & (down < rows) & (across >= 0) & (across < columns)

        @no_type_check
        def score_mod(score: Tensor, b: Tensor, head: Tensor, q: Tensor, n: Tensor) -> Tensor:
            # Masked pairs are looked up too, hence the clamp.
            down = n // width // y_step - q // width // y_step + self.kernel - 1
            across = n % width // x_step - q % width // x_step + self.kernel - 1
            return score + table[head, down.clamp(0, last), across.clamp(0, last)]

        count = height * width
        mask = create_block_mask(mask_mod, None, None, count, count, device=query.device)
        flat = (part.flatten(2, 3) for part in (query, key, value))
        out = flex_call(query.device)(*flat, score_mod=score_mod, block_mask=mask, scale=1.0)
        return out.unflatten(2, (height, width))

    def reach(self, height: int, width: int) -> Bool[Tensor, "n n"]:
        least = self.kernel * self.dilation if self.small_maps == "pad" else 1
        axes = []
        for length in (height, width):
            padded = max(length, least)
            keys, _ = self._keys(padded)
            axes.append(F.one_hot(keys, padded).any(dim=1)[:length, :length])
        seen = join_axes(*axes)
        return seen if self.local is None else seen | join_axes(within(1, height), within(1, width))


def _first_slots(places: Tensor, length: int, kernel: int, dilation: int) -> Tensor:
    """Return where the window of every position begins, among the positions of its residue."""
    members = (length - places % dilation + dilation - 1) // dilation
    return torch.minimum((places // dilation - kernel // 2).clamp(min=0), members - kernel)
