"""Convolutions between pixels and the map of features, in place of plain patches: sharper edges for the same number of latents.

Letters: `b` batch, `c h w` image, `n` cells of the map, `d` channels of a cell.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.nn.blocks.convnet import ConvBlock
from hiergen.nn.running.checkpointing import CheckpointedModule

#: Number of groups of every normalization; channels are multiples of it.
GROUPS = 8


class ConvPatches(CheckpointedModule):
    """Image to cells: squares of half a patch become channels, residual blocks at twice the map's resolution, then at the map's own.

    Args:
        patch_size: Side of what a cell covers, in pixels; even.
        channels: Channels at twice the map's resolution.
        dim: Channels of a cell.
        blocks: Number of residual blocks, in the order of the image's way.
    """

    def __init__(self, patch_size: int, channels: int, dim: int, blocks: tuple[int, int]) -> None:
        super().__init__()
        self.square = patch_size // 2
        self.conv_in = nn.Conv2d(3 * self.square**2, channels, 3, padding=1)
        self.fine = _blocks(channels, blocks[0])
        self.down = nn.Conv2d(4 * channels, dim, 1)
        self.coarse = _blocks(dim, blocks[1])

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return one feature per cell, row-major."""
        x = F.pixel_unshuffle(images.to(self.conv_in.weight.dtype), self.square)
        # Convolutions on a CPU take half the time with the channels last.
        x = self.run(self.fine, self.conv_in(x.contiguous(memory_format=torch.channels_last)))
        x = self.run(self.coarse, self.down(_channels_last(F.pixel_unshuffle(x, 2))))
        return rearrange(x, "b d h w -> b (h w) d")


class ConvPixels(CheckpointedModule):
    """Cells to image: the mirror of `ConvPatches`."""

    def __init__(self, patch_size: int, channels: int, dim: int, blocks: tuple[int, int]) -> None:
        super().__init__()
        self.square = patch_size // 2
        self.coarse = _blocks(dim, blocks[0])
        self.up = nn.Conv2d(dim, 4 * channels, 1)
        self.fine = _blocks(channels, blocks[1])
        self.norm_out = nn.GroupNorm(GROUPS, channels)
        self.conv_out = nn.Conv2d(channels, 3 * self.square**2, 3, padding=1)

    def forward(self, cells: Float[Tensor, "b n d"]) -> Float[Tensor, "b c h w"]:
        """Return the image of square maps."""
        x = rearrange(cells, "b (h w) d -> b d h w", h=round(cells.shape[1] ** 0.5))
        x = self.up(self.run(self.coarse, x))
        x = self.run(self.fine, _channels_last(F.pixel_shuffle(x, 2)))
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.square)


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ConvBlock(channels, channels, GROUPS, "input") for _ in range(count)))


def start_as_identity(module: nn.Module) -> None:
    """Set the last convolution of every residual block to 0."""
    for block in module.modules():
        if isinstance(block, ConvBlock):
            nn.init.zeros_(block.conv2.weight)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
