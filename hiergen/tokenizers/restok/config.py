"""ResTok's configuration: its checks, and everything that follows from it (levels, grids, where levels merge)."""

from __future__ import annotations

import dataclasses
from itertools import accumulate
from typing import Literal

from hiergen.nn.blocks.convnet import ConvNetConfig, Shortcut

Projection = Literal["reinterpreted", "per_token"]
Merge = Literal["even", "average"]
Grid = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class ResTokConfig:
    """The arguments of `hiergen.tokenizers.restok.model.ResTok`, where each is explained, checked against each other."""

    image_size: int
    in_channels: int
    cnn_encoder: bool
    cnn_channels: int
    cnn_multipliers: tuple[int, ...]
    cnn_blocks: int
    cnn_mid_blocks: int
    cnn_groups: int
    cnn_shortcut: Shortcut
    z_channels: int
    encoder_dim: int
    encoder_depth: int
    encoder_heads: int
    decoder_dim: int
    decoder_depth: int
    decoder_heads: int
    mlp_ratio: float
    rotary_theta: float
    num_latent_tokens: int
    min_tokens: int
    code_dim: int
    vocab_size: int
    num_image_levels: int
    merge: Merge
    residual_image_tokens: bool
    residual_latent_tokens: bool
    latent_hierarchy: bool
    projection: Projection
    multi_projection: bool
    learnable_image_tokens: bool
    decoder_features: bool
    drop_prob: float
    commitment_weight: float
    entropy_weight: float

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_sizes()
        self._check_levels()

    def _check_choices(self) -> None:
        for name, choices in (("projection", ("reinterpreted", "per_token")), ("merge", ("even", "average"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {choices}")
        if not 0.0 <= self.drop_prob <= 1.0:
            raise ValueError(f"drop_prob is {self.drop_prob}, expected 0 to 1")

    def _check_sizes(self) -> None:
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
            shortcut=self.cnn_shortcut,
        )

    @property
    def grid_size(self) -> int:
        """Cells a side of the map between the convolutional and the transformer parts."""
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
        """Cells to which the map is pooled to start each level's latent tokens."""
        return tuple(_pooling_grid(size) for size in self.level_sizes)

    @property
    def merge_blocks(self) -> tuple[int, ...]:
        """Encoder blocks inside which a coarser image level is made."""
        # In floating point, as in the source: its rounding decides for a few depths.
        levels, depth = self.num_image_levels, self.encoder_depth
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
