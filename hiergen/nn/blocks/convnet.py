"""A convolutional encoder and its mirrored decoder: residual blocks, no attention.

Letters: `b` batch, `c h w` image, `z` channels of the small map.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.checked import Checked
from hiergen.kernels.dispatch import is_fast_cpu
from hiergen.nn.running.checkpointing import CheckpointedModule
from hiergen.nn.running.precision import KeepsFloat32

#: Source of the 1x1 shortcut convolution where a block changes the number of channels.
Shortcut = Literal["branch", "input"]


@dataclasses.dataclass(frozen=True)
class ConvNetConfig(Checked):
    """Sizes of a convolutional encoder and its mirrored decoder.

    Attributes:
        image_channels: Channels of the image.
        channels: Channels at full resolution.
        multipliers: Channels of each resolution, fine to coarse, as multiples of `channels`; each step halves the resolution.
        blocks: Number of residual blocks of each resolution.
        mid_blocks: Number of residual blocks at the coarsest resolution, beyond `blocks`.
        z_channels: Channels of the small map.
        groups: Number of groups of every GroupNorm.
        stem: Side of the squares of pixels that become channels first, which spares the convolutions at the image's full resolution, where
            most of the time goes; 1 leaves pixels as they are.
        shortcut: "input" is an ordinary residual block. "branch" is what published weights need: where the channels change,
            the 1x1 convolution reads the block's output and the block's input is dropped.
    """

    image_channels: int = 3
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    mid_blocks: int = 2
    z_channels: int = 256
    groups: int = 32
    stem: int = 1
    shortcut: Shortcut = "branch"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_channels", "channels", "blocks", "z_channels", "groups", "stem"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers is {self.multipliers}, expected at least one, each at least 1")
        if self.mid_blocks < 0:
            raise ValueError(f"mid_blocks is {self.mid_blocks}, expected at least 0")
        if self.shortcut not in ("branch", "input"):
            raise ValueError(f"shortcut is {self.shortcut!r}, expected 'branch' or 'input'")
        for width in (self.channels, *self.widths):
            if width % self.groups:
                raise ValueError(f"groups is {self.groups}, expected a divisor of the {width} channels of a block")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each resolution, fine to coarse."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def stride(self) -> int:
        """Side of the square of pixels that one cell of the small map stands for."""
        return self.stem * 2 ** (len(self.multipliers) - 1)


class ConvBlock(nn.Module):
    """Two normalized 3x3 convolutions with a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.reads_input = shortcut == "input"
        self.shortcut: nn.Conv2d | None = None
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels if self.reads_input else out_channels, out_channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h w"]:
        branch = self.conv1(F.silu(self.norm1(x)))
        branch = self.conv2(F.silu(self.norm2(branch)))
        if self.shortcut is None:
            return x + branch
        return self.shortcut(x if self.reads_input else branch) + branch


class ConvEncoder(CheckpointedModule):
    """Image to small map: `(b, c, h, w)` to `(b, z, h / stride, w / stride)`."""

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        widths = config.widths
        self.stem = config.stem
        self.conv_in = nn.Conv2d(config.image_channels * config.stem**2, config.channels, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            _blocks(config, previous, width, config.blocks)
            for previous, width in zip((config.channels, *widths), widths, strict=False)
        )
        self.mid = _blocks(config, widths[-1], widths[-1], config.mid_blocks)
        self.norm_out = nn.GroupNorm(config.groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 1)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b z small_h small_w"]:
        if self.stem > 1:
            images = F.pixel_unshuffle(images, self.stem)
        x = self.conv_in(channels_last(images))
        for resolution, blocks in enumerate(self.down):
            if resolution:
                x = F.avg_pool2d(x, 2)
            x = self.run(blocks, x)
        x = self.run(self.mid, x)
        return self.conv_out(F.silu(self.norm_out(x)))


class ConvDecoder(CheckpointedModule, KeepsFloat32):
    """Small map to image: `(b, z, h, w)` to `(b, c, h * stride, w * stride)`, without activation at the end."""

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = _blocks(config, widths[-1], widths[-1], config.mid_blocks)
        # Index 0 is the full resolution in both lists, as in the encoder; `forward` visits them backwards.
        self.up = nn.ModuleList(
            _blocks(config, coarser, width, config.blocks)
            for coarser, width in zip((*widths[1:], widths[-1]), widths, strict=True)
        )
        self.upsample = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for width in widths[1:])
        self.norm_out = nn.GroupNorm(config.groups, widths[0], eps=1e-6)
        self.stem = config.stem
        self.conv_out = nn.Conv2d(widths[0], config.image_channels * config.stem**2, 3, padding=1)

    def forward(self, x: Float[Tensor, "b z small_h small_w"]) -> Float[Tensor, "b c h w"]:
        x = self.run(self.mid, self.conv_in(channels_last(x)))
        for resolution in reversed(range(len(self.up))):
            x = self.run(self.up[resolution], x)
            if resolution:
                x = self.upsample[resolution - 1](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        x = self.conv_out(F.silu(self.norm_out(x)))
        return F.pixel_shuffle(x, self.stem) if self.stem > 1 else x


def channels_last(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return the map as convolutions are fastest with it: on a CPU with the channels last in memory."""
    return x.contiguous(memory_format=torch.channels_last) if is_fast_cpu(x.device) else x


def _blocks(config: ConvNetConfig, in_channels: int, out_channels: int, count: int) -> nn.Sequential:
    sizes = [in_channels] + [out_channels] * count
    return nn.Sequential(
        *(ConvBlock(before, after, config.groups, config.shortcut) for before, after in itertools.pairwise(sizes))
    )
