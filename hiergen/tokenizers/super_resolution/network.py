"""A transformer that makes images larger: groups of window attention whose blocks read the results of all earlier ones.

    x_0 = x;  x_i = narrow_i(block_i(x_0 ... x_(i-1)))      i = 1 ... 5, the inputs side by side
    group(x) = x + 0.2 * x_5

Letters: `b` batch, `c h w` a map; inside the groups, channels are last.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.nn.blocks.layers import GeluMLP
from hiergen.nn.constants import channel_statistics
from hiergen.nn.initialization import init_truncated_normal
from hiergen.nn.mixers.basic import WindowMixer
from hiergen.nn.running.checkpointing import CheckpointedModule

Skip = Literal["bicubic", "none"]

#: Mean of the training images of the published networks, in [0, 1].
_MEAN = (0.4488, 0.4371, 0.4040)
#: MLP ratio of each block of a group.
_RATIOS = (2, 2, 2, 1, 1)


class SwinBlock(nn.Module):
    """x += attention(LN(x)) inside windows; x += MLP(LN(x))."""

    def __init__(self, dim: int, num_heads: int, *, window: int, shift: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = WindowMixer(dim, num_heads, window=window, shift=shift)
        self.mlp = GeluMLP(dim, mlp_ratio * dim)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DenseGroup(nn.Module):
    """Five blocks, each on the group's input beside what all earlier blocks added, with and without a shift in turn.

    Args:
        dim: Channels of the input and the output.
        growth: Channels that each of the first four blocks adds.
        num_heads: Heads of a block; where they do not divide its width, the remainder is taken from them.
        window: Side of the windows in pixels.

    Raises:
        ValueError: If a block's width cannot be cut into its heads.
    """

    def __init__(self, dim: int, growth: int, *, num_heads: int, window: int) -> None:
        super().__init__()
        self.blocks, self.narrow = nn.ModuleList(), nn.ModuleList()
        for index, ratio in enumerate(_RATIOS):
            width = dim + index * growth
            heads = num_heads - width % num_heads if index else num_heads
            if width % heads:
                raise ValueError(
                    f"num_heads is {num_heads} with dim {dim} and growth {growth}, which gives {heads} heads to block {index + 1} of "
                    f"{width} channels, expected a divisor"
                )
            shift = window // 2 if index % 2 else 0
            self.blocks.append(SwinBlock(width, heads, window=window, shift=shift, mlp_ratio=ratio))
            self.narrow.append(nn.Linear(width, dim if index == len(_RATIOS) - 1 else growth))

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        parts = [x]
        for block, narrow in zip(self.blocks, self.narrow, strict=True):
            parts.append(F.leaky_relu(narrow(block(torch.cat(parts, dim=-1))), 0.2 if len(parts) < len(_RATIOS) else 1))
        return x + 0.2 * parts[-1]


class DenseResidualUpscaler(CheckpointedModule):
    """Images in [-1, 1] to images of `scale` times their height and width, about [-1, 1] but not clamped; any size.

    Args:
        scale: 2, 4, 8, ...: how much larger the images become.
        in_channels: Channels of the images.
        dim: Channels of a group's input and output.
        growth: Channels that a block of a group adds.
        groups: Number of groups.
        num_heads: Heads of the attention, as for `DenseGroup`.
        last_dim: Channels between the groups and the image.
        window: Side of the windows in pixels. Windows at the right and the lower edge may be smaller; the published program fills images
            up to whole windows before the network.
        skip: "bicubic" adds what is learned to bicubic interpolation, and starts as that; "none" is the published network.

    Raises:
        ValueError: If the scale is no power of two, or a size does not fit.

    Source:
        DRCT, arXiv:2404.00722: dim 180, growth 32, 6 heads, last_dim 64, windows of 16, 6 groups, or 12 for the large one. Its drop path is left out.
    """

    def __init__(
        self,
        *,
        scale: int = 2,
        in_channels: int = 3,
        dim: int = 180,
        growth: int = 32,
        groups: int = 6,
        num_heads: int = 6,
        last_dim: int = 64,
        window: int = 16,
        skip: Skip = "bicubic",
    ) -> None:
        super().__init__()
        if scale < 2 or scale & (scale - 1):
            raise ValueError(f"scale is {scale}, expected a power of two of at least 2")
        self.scale, self.skip = scale, skip
        mean = _MEAN if in_channels == len(_MEAN) else [sum(_MEAN) / len(_MEAN)] * in_channels
        self._constants = channel_statistics(mean, [1.0] * in_channels)
        self.first = nn.Conv2d(in_channels, dim, 3, padding=1)
        self.norm_in, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.groups = nn.ModuleList(DenseGroup(dim, growth, num_heads=num_heads, window=window) for _ in range(groups))
        self.body = nn.Conv2d(dim, dim, 3, padding=1)
        self.before = nn.Conv2d(dim, last_dim, 3, padding=1)
        doublings = scale.bit_length() - 1
        self.grow = nn.ModuleList(nn.Conv2d(last_dim, 4 * last_dim, 3, padding=1) for _ in range(doublings))
        self.last = nn.Conv2d(last_dim, in_channels, 3, padding=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights of the groups as Swin's, and let what is added to bicubic interpolation begin at zero."""
        init_truncated_normal(self.groups)
        if self.skip == "bicubic":
            nn.init.zeros_(self.last.weight)
            assert self.last.bias is not None
            nn.init.zeros_(self.last.bias)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c large_h large_w"]:
        mean = self._constants.on(images.device)["mean"].to(images.dtype)
        first = self.first((images + 1) / 2 - mean)
        x = self.norm_in(first.permute(0, 2, 3, 1))
        for group in self.groups:
            x = self.run(group, x)
        x = F.leaky_relu(self.before(self.body(self.norm_out(x).permute(0, 3, 1, 2)) + first), 0.01)
        for grow in self.grow:
            x = F.pixel_shuffle(grow(x), 2)
        made = 2 * self.last(x)
        if self.skip == "none":
            return made + 2 * mean - 1
        return made + F.interpolate(images, scale_factor=self.scale, mode="bicubic", align_corners=False)
