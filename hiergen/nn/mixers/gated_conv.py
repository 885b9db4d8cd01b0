"""Recursive gated convolution: products of a token's features with those around it, of growing order (HorNet's gnConv).

    (a, b) = W_in x                                     a has c / 2^(order-1) channels, b all widths together
    g      = scale * filter(b), split by widths         widths c / 2^(order-1), ..., c / 2, c
    z      = a * g_0;   z = (W_i z) * g_(i+1)           for i = 0 ... order - 2
    y      = W_out z

The order multiplies inputs; it does not widen the window, which is that of the filter.

Letters: `b` batch, `h w` sides of the map, `c` channels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hiergen.nn.mixers.base import TokenMixer, join_axes, within
from hiergen.nn.mixers.basic import depthwise
from hiergen.nn.running.precision import widen, without_autocast


class GatedConvMixer(TokenMixer):
    """HorNet's gnConv; linear in the number of tokens.

    Args:
        dim: Channels of a token, a multiple of 2^(order - 1).
        order: How many features are multiplied.
        scale: Factor of the filtered features, 1/3 in every published model.
        filter: "depthwise" is a 7 x 7 convolution; "global_local" filters half of the channels by 3 x 3 and half in the frequencies of
            the whole map.
        frequency_grid: Rows and columns of the learned frequencies of "global_local" (published: 14 x 8 for maps of 14 x 14). For maps
            of another size they are interpolated, which is another filter.

    Raises:
        ValueError: If `dim` cannot be halved that often or an option is unknown.

    Source:
        HorNet, arXiv:2207.14284.
    """

    def __init__(
        self,
        dim: int,
        *,
        order: int = 3,
        scale: float = 1 / 3,
        filter: Literal["depthwise", "global_local"] = "depthwise",
        frequency_grid: tuple[int, int] = (14, 8),
    ) -> None:
        super().__init__()
        if order < 1 or dim % 2 ** (order - 1):
            raise ValueError(f"order is {order}, expected at least 1 and that 2^(order - 1) divides dim {dim}")
        if filter not in ("depthwise", "global_local"):
            raise ValueError(f"filter is {filter!r}, expected 'depthwise' or 'global_local'")
        self.widths = [dim // 2 ** (order - 1 - index) for index in range(order)]
        self.scale, self.is_global = scale, filter == "global_local"
        total = sum(self.widths)
        self.proj_in = nn.Conv2d(dim, 2 * dim, 1)
        self.dwconv: nn.Module = _GlobalLocalFilter(total, frequency_grid) if self.is_global else depthwise(total, 7)
        self.pws = nn.ModuleList(
            nn.Conv2d(before, after, 1) for before, after in zip(self.widths, self.widths[1:], strict=False)
        )
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        first, rest = self.proj_in(x.permute(0, 3, 1, 2)).split([self.widths[0], sum(self.widths)], dim=1)
        gates = (self.scale * self.dwconv(rest)).split(self.widths, dim=1)
        z = first * gates[0]
        for grow, gate in zip(self.pws, gates[1:], strict=True):
            z = grow(z) * gate
        return self.proj_out(z).permute(0, 2, 3, 1)

    def reach(self, height: int, width: int) -> Bool[Tensor, "n n"] | None:
        return None if self.is_global else join_axes(within(3, height), within(3, width))


class _GlobalLocalFilter(nn.Module):
    """Half of the channels by a 3 x 3 convolution, half times learned numbers in the frequency domain; interleaved, normed before and after."""

    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        if dim % 2 or min(grid) < 1:
            raise ValueError(
                f"frequency_grid is {grid} for {dim} filtered channels, expected positive sides and an even number of channels"
            )
        self.pre_norm = nn.LayerNorm(dim, eps=1e-6)
        self.dw = nn.Conv2d(dim // 2, dim // 2, 3, padding=1, bias=False, groups=dim // 2)
        self.complex_weight = nn.Parameter(torch.empty(dim // 2, *grid, 2))
        nn.init.trunc_normal_(self.complex_weight, std=0.02)
        self.post_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        local, everywhere = _norm(self.pre_norm, x).chunk(2, dim=1)
        with without_autocast(x.device):
            wide = widen(everywhere)
            spectrum = torch.fft.rfft2(wide, norm="ortho")
            weight = widen(self.complex_weight)
            if weight.shape[1:3] != spectrum.shape[2:4]:
                moved = weight.permute(3, 0, 1, 2)
                weight = F.interpolate(moved, size=spectrum.shape[2:4], mode="bilinear", align_corners=True).permute(
                    1, 2, 3, 0
                )
            filtered = torch.fft.irfft2(
                spectrum * torch.view_as_complex(weight.contiguous()), s=wide.shape[2:4], norm="ortho"
            )
        joined = torch.stack((self.dw(local), filtered.to(x.dtype)), dim=2).flatten(1, 2)
        return _norm(self.post_norm, joined)


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
