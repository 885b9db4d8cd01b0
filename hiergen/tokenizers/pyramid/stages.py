"""A pyramid encoder of our own: stages of blocks around any token mixer, each at half the resolution of the one before.

    x = LN(conv(image))                                      stem, of stride s
    x += scale1 * mixer(LN(x));  x += scale2 * MLP(LN(x))    blocks of a stage
    x = conv(LN(x))                                          2 x 2 of stride 2, between stages

Letters: `b` batch, `c h w` a map; inside, channels are last.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.nn.blocks.layers import FeedForwardKind, make_feed_forward
from hiergen.nn.mixers.create import create_mixer
from hiergen.nn.running.checkpointing import CheckpointedModule
from hiergen.tokenizers.pyramid.encoder import PyramidEncoder


class MixerBlock(nn.Module):
    """x += scale1 * mixer(LN(x)); x += scale2 * MLP(LN(x)), with learned scales of each channel.

    Args:
        dim: Channels of a token.
        mixer: A name of `hiergen.nn.mixers.create.MIXERS`.
        num_heads: Heads, for mixers that have any.
        mlp: Kind of the feed-forward part (`make_feed_forward`).
        mlp_ratio: Hidden channels of the feed-forward part over `dim`.
        layer_scale: What both scales start at.
        options: Options of the mixer.
    """

    def __init__(
        self,
        dim: int,
        mixer: str,
        *,
        num_heads: int,
        mlp: FeedForwardKind = "gelu",
        mlp_ratio: float = 2.0,
        layer_scale: float = 0.1,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mixer = create_mixer(mixer, dim, num_heads=num_heads, **options)
        self.mlp = make_feed_forward(mlp, dim, mlp_ratio)
        self.scale1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.scale2 = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        x = x + self.scale1 * self.mixer(self.norm1(x))
        return x + self.scale2 * self.mlp(self.norm2(x))


class MixerPyramid(PyramidEncoder, CheckpointedModule):
    """Stages of mixers. Maps round up: an odd one is continued by its last row and column.

    Args:
        mixer: A name of `hiergen.nn.mixers.create.MIXERS`.
        widths: Channels of each stage, fine to coarse.
        depths: Blocks of each stage, fine to coarse.
        stem: Stride of the first convolution, in pixels.
        head_dim: Channels of a head, for mixers that have heads; narrower stages have one head.
        mlp: Kind of the feed-forward part; "swiglu" is gated.
        mlp_ratio: Hidden channels of the feed-forward part over the width.
        layer_scale: What the scales of the blocks' branches start at.
        mixer_options: Options of the mixers. The blocks of a stage take them in turn, e.g. windows without and with a shift; none are
            the mixer's defaults.
        shares_blocks: Run as many blocks of a stage as there are `mixer_options` again and again, with the same weights.
        in_channels: Channels of the images.

    Raises:
        ValueError: If sizes do not fit together, or the mixer or an option of it is unknown.
    """

    def __init__(
        self,
        mixer: str,
        *,
        widths: Sequence[int] = (32, 64, 128),
        depths: Sequence[int] = (2, 2, 2),
        stem: int = 4,
        head_dim: int = 32,
        mlp: FeedForwardKind = "gelu",
        mlp_ratio: float = 2.0,
        layer_scale: float = 0.1,
        mixer_options: Sequence[Mapping[str, Any]] = ({},),
        shares_blocks: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1 or len(depths) != len(widths) or min(depths) < 0:
            raise ValueError(
                f"widths is {list(widths)} and depths is {list(depths)}, expected as many of each, positive and at least 0"
            )
        for name, value in (("stem", stem), ("head_dim", head_dim), ("mixer_options", len(mixer_options))):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        self.depths = tuple(depths)
        self.strides = tuple(stem * 2**index for index in reversed(range(len(widths))))
        self.channels = tuple(reversed(widths))
        self.stem = nn.Conv2d(in_channels, widths[0], stem, stem)
        self.stem_norm = nn.LayerNorm(widths[0])
        self.stages, self.down = nn.ModuleList(), nn.ModuleList()
        for width, depth in zip(widths, depths, strict=True):
            count = min(depth, len(mixer_options)) if shares_blocks else depth
            blocks = [
                MixerBlock(
                    width,
                    mixer,
                    num_heads=max(1, width // head_dim),
                    mlp=mlp,
                    mlp_ratio=mlp_ratio,
                    layer_scale=layer_scale,
                    options=mixer_options[index % len(mixer_options)],
                )
                for index in range(count)
            ]
            self.stages.append(nn.ModuleList(blocks))
        for before, after in itertools.pairwise(widths):
            self.down.append(nn.ModuleList((nn.LayerNorm(before), nn.Conv2d(before, after, 2, 2))))

    def grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Return rows and columns of each map, coarse to fine: the image over the stride, rounded up."""
        return tuple((-(-height // stride), -(-width // stride)) for stride in self.strides)

    def _features(self, images: Tensor) -> list[Tensor]:
        x = self.stem_norm(_convolve(self.stem, images.to(self.stem.weight.dtype)).permute(0, 2, 3, 1))
        maps = []
        for index, (blocks, depth) in enumerate(zip(self.stages, self.depths, strict=True)):
            if index:
                step_down: Any = self.down[index - 1]
                x = _convolve(step_down[1], step_down[0](x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            for step in range(depth):
                x = self.run(blocks[step % len(blocks)], x)  # type: ignore[index,arg-type]  # a list of modules
            maps.append(x.permute(0, 3, 1, 2))
        return maps[::-1]


def _convolve(convolution: Any, maps: Tensor) -> Tensor:
    """Return the strided convolution of a map that is continued right and below to a multiple of the stride."""
    height, width = maps.shape[2:]
    rows, columns = convolution.stride
    return convolution(F.pad(maps, (0, -width % columns, 0, -height % rows), mode="replicate"))
