"""The options of ResTok, each written once, their checks, and all that follows from them: levels, grids, where levels merge."""

from __future__ import annotations

import dataclasses
from itertools import accumulate
from typing import Any, Literal

from hiergen.checked import Checked
from hiergen.nn.blocks.convnet import ConvNetConfig, Shortcut

Projection = Literal["reinterpreted", "per_token"]
Merge = Literal["even", "average"]
Grid = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class ResTokConfig(Checked):
    """The keyword arguments of `hiergen.tokenizers.restok.model.ResTok`. The defaults are the published ResTok-L-128 at 256x256.

    Raises:
        ValueError: If the sizes do not fit together.
    """

    # The image and the convolutional parts
    image_size: int = 256
    """Height and width in pixels, a multiple of the stride cnn_stem * 2^(len(cnn_multipliers) - 1)."""
    in_channels: int = 3
    """Channels of the image. Three are normalized with ImageNet's statistics, others enter as they are."""
    cnn_encoder: bool = True
    """False replaces the convolutional encoder by one patch convolution."""
    cnn_channels: int = 128
    """Channels of the convolutional parts at full resolution."""
    cnn_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Multiples of `cnn_channels` at each resolution, fine to coarse; see `hiergen.nn.blocks.convnet.ConvNetConfig`."""
    cnn_blocks: int = 2
    """Residual blocks at each resolution."""
    cnn_mid_blocks: int = 2
    """Further blocks at the coarsest resolution."""
    cnn_groups: int = 32
    """Groups of every GroupNorm."""
    cnn_stem: int = 1
    """Side of the squares of pixels that become channels before any convolution; the stride is as many times larger."""
    cnn_shortcut: Shortcut = "branch"
    """What blocks that change the channels add: "branch" (published), or "input" as an ordinary residual block does."""
    z_channels: int = 256
    """Channels between convolutional and transformer parts."""

    # The transformers
    encoder_dim: int = 1024
    """Channels of the encoder's tokens."""
    encoder_depth: int = 24
    """Blocks of the encoder."""
    encoder_heads: int = 16
    """Attention heads of the encoder."""
    decoder_dim: int = 1024
    """Channels of the decoder's tokens."""
    decoder_depth: int = 24
    """Blocks of the decoder."""
    decoder_heads: int = 16
    """Attention heads of the decoder."""
    mlp_ratio: float = 4.0
    """Hidden channels of the MLPs over the width."""
    rotary_theta: float = 10000.0
    """Base of the rotary frequencies."""

    # The tokens
    num_latent_tokens: int = 128
    """Tokens per image, a power of two; the levels have 1, 1, 2, 4, ..., half of them."""
    min_tokens: int = 4
    """Shortest prefix that is trained and decoded."""
    code_dim: int = 8
    """Channels of a code."""
    vocab_size: int = 8192
    """Number of codes in the codebook."""

    # The hierarchy
    num_image_levels: int = 4
    """Levels of image tokens in the encoder; 1 merges nothing."""
    merge: Merge = "even"
    """How a coarser image level is made: "even" (published) keeps every other token of the sequence, so only the width halves;
    "average" takes means of 2x2 cells, so both sides halve while they can."""
    residual_image_tokens: bool = True
    """Subtract the coarser level from the finer one at a merge."""
    residual_latent_tokens: bool = True
    """Start a latent level from what the coarser ones leave over."""
    latent_hierarchy: bool = True
    """Start the latent levels from a pyramid of poolings; False pools the flattened map once."""
    projection: Projection = "reinterpreted"
    """"reinterpreted" (published) reads the encoder's output as if channels came first, so every code mixes all tokens; with
    "per_token" a code depends on its own token, hence on levels up to its own."""
    multi_projection: bool = True
    """Use one projection per level into and out of the bottleneck; False shares one."""
    learnable_image_tokens: bool = True
    """Start the decoder's map from a mask token; False starts it from the sum of the upsampled latent levels."""

    # Training
    decoder_features: bool = False
    """Run the decoder a second time in training, for tokens that `forward` returns to be aligned with a teacher."""
    drop_prob: float = 0.2
    """Probability that training decodes a shorter prefix."""
    commitment_weight: float = 0.25
    """Weight of the commitment loss; see `hiergen.bottlenecks.vector.VectorQuantizer`."""
    entropy_weight: float = 0.0
    """Weight of the entropy loss; see `hiergen.bottlenecks.vector.VectorQuantizer`."""

    # The stacks
    plan: dict[str, Any] | None = None
    """Steps of "encoder" and "decoder" (`hiergen.nn.depth.plan`); a part that is left out runs each block once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_sizes()
        self._check_levels()

    def _check_sizes(self) -> None:
        if not 0.0 <= self.drop_prob <= 1.0:
            raise ValueError(f"drop_prob is {self.drop_prob}, expected 0 to 1")
        if self.image_size < 1 or self.image_size % self.convnet.stride:
            raise ValueError(
                f"image_size is {self.image_size}, expected a multiple of the stride, {self.convnet.stride}"
            )
        for side in ("encoder", "decoder"):
            dim, depth, heads = (getattr(self, f"{side}_{name}") for name in ("dim", "depth", "heads"))
            if depth < 1:
                raise ValueError(f"{side}_depth is {depth}, expected at least 1")
            if heads < 1 or dim % heads or (dim // heads) % 4:
                raise ValueError(
                    f"{side}_dim is {dim} with {heads} heads, expected heads of a multiple of 4 channels each"
                )

    def _check_levels(self) -> None:
        tokens = self.num_latent_tokens
        if tokens < 1 or tokens & (tokens - 1):
            raise ValueError(f"num_latent_tokens is {tokens}, expected a power of two")
        if self.min_tokens not in self.prefixes:
            raise ValueError(f"min_tokens is {self.min_tokens}, expected one of the prefix lengths {self.prefixes}")
        if self.num_image_levels < 1:
            raise ValueError(f"num_image_levels is {self.num_image_levels}, expected at least 1 (which merges nothing)")
        merges = self.merge_blocks
        if merges and (merges[0] < 0 or len(set(merges)) < len(merges)):
            raise ValueError(
                f"encoder_depth is {self.encoder_depth}, expected at least num_image_levels, {self.num_image_levels}"
            )
        _ = self.image_grids

    @property
    def convnet(self) -> ConvNetConfig:
        return ConvNetConfig(
            image_channels=self.in_channels,
            channels=self.cnn_channels,
            multipliers=self.cnn_multipliers,
            blocks=self.cnn_blocks,
            mid_blocks=self.cnn_mid_blocks,
            z_channels=self.z_channels,
            groups=self.cnn_groups,
            stem=self.cnn_stem,
            shortcut=self.cnn_shortcut,
        )

    @property
    def grid_size(self) -> int:
        """Side, in cells, of the map between the convolutional and the transformer parts."""
        return self.image_size // self.convnet.stride

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Latent tokens of each level: 1, 1, 2, 4, ..., half of all."""
        return (1, *(2**k for k in range(self.num_latent_tokens.bit_length() - 1)))

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Latent tokens of the first levels together: 1, 2, 4, ..., all."""
        return tuple(accumulate(self.level_sizes))

    @property
    def allowed_prefixes(self) -> tuple[int, ...]:
        """Prefixes that the decoder is trained on."""
        return tuple(prefix for prefix in self.prefixes if prefix >= self.min_tokens)

    @property
    def pooling_grids(self) -> tuple[Grid, ...]:
        """Grid to which the map is pooled to start each level's latent tokens."""
        return tuple(_pooling_grid(size) for size in self.level_sizes)

    @property
    def merge_blocks(self) -> tuple[int, ...]:
        """Steps of the encoder inside which a coarser image level is made: indices of its plan, or of its blocks."""
        # In floating point, as in the source: its rounding decides for a few depths.
        levels, depth = self.num_image_levels, len((self.plan or {}).get("encoder", range(self.encoder_depth)))
        return tuple(int(k / levels * depth) - 1 for k in range(1, levels))

    @property
    def image_grids(self) -> tuple[Grid, ...]:
        """Grid of each image level in the order in which they come to be, fine to coarse.

        Raises:
            ValueError: If the grid cannot be halved that often.
        """
        grids = [(self.grid_size, self.grid_size)]
        for _ in range(1, self.num_image_levels):
            height, width = grids[-1]
            halves_height = self.merge == "average" and height % 2 == 0
            if width % 2 and not halves_height:
                raise ValueError(
                    f"num_image_levels is {self.num_image_levels}, but a grid of {self.grid_size}x{self.grid_size} "
                    f"can be merged only {len(grids) - 1} times with merge={self.merge!r}"
                )
            grids.append((height // 2 if halves_height else height, width if width % 2 else width // 2))
        return tuple(grids)


def _pooling_grid(num_tokens: int) -> Grid:
    power = num_tokens.bit_length() - 1
    return 2 ** (power // 2), 2 ** (power - power // 2)
