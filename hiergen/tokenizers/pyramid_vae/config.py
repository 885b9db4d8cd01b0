"""The options of the pyramid VAE, each written once, and their checks."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from hiergen.checked import Checked
from hiergen.nn.blocks.perceiver import fourier_dim


@dataclasses.dataclass(frozen=True)
class PyramidVAEConfig(Checked):
    """The keyword arguments of `hiergen.tokenizers.pyramid_vae.model.PyramidVAE`.

    Raises:
        ValueError: If the sizes do not fit together.
    """

    # Sizes
    num_tokens: tuple[int, ...] = (256, 1024)
    """Tokens of each level, increasing. All levels share every weight except their queries."""
    token_dim: int = 64
    """Channels of a token."""
    width: int = 768
    """Channels inside."""
    num_heads: int = 12
    """Attention heads."""
    encoder_depth: int = 8
    """Self-attention blocks of the encoder."""
    decoder_depth: int = 16
    """Self-attention blocks of the decoder."""

    # What the encoder reads
    num_frequencies: int = 8
    """Number of frequencies 1, 2, 4, ... in the Fourier embedding."""
    include_pi: bool = False
    """Multiply the frequencies by pi."""
    point_features: int = 3
    """Channels of a point beyond its coordinates; 3 are normals."""
    embed_point_features: bool = False
    """Give the features a Fourier embedding too."""
    point_counts: tuple[int, ...] | None = (16384, 4096, 1024)
    """Points of each resolution, decreasing, by farthest-point sampling; None reads the whole cloud at one resolution (the released
    encoder)."""
    queries: Literal["learned", "farthest"] = "learned"
    """Queries of the encoder: "learned", or "farthest", the embeddings of as many farthest points as the level has tokens."""
    anchor_reach: tuple[float, ...] | None = None
    """Give every token a place, the tokens of a level being the cells of a cubic grid, and let the attention of each head between points
    and tokens fade with their distance: its standard deviation as a multiple of the grid's spacing, 0 for a head that does not fade. None
    gives tokens no places (as published)."""
    extent: float | None = None
    """Half the side of the cube that shapes lie in: beyond it the field is that of empty space, whatever the network says. With
    `include_pi` the embedding repeats with period 2, so beyond 1 the network sees the shape's other end. None asks it everywhere (as
    published)."""
    share_input_projection: bool = True
    """Use one input projection for all point resolutions; False gives each its own."""
    residual_per_level: bool = False
    """Add the queries once for each point resolution instead of once in all. Equal for one resolution."""
    qkv_bias: bool = True
    """Give the projections to queries, keys and values biases."""
    final_encoder_norm: bool = True
    """End the encoder with a norm."""

    # Training
    kl_weight: float = 1e-3
    """Weight of the KL term, which is a *mean* over tokens and channels."""
    init_scale: float = 0.25
    """Start the blocks' weights with a deviation of `init_scale / sqrt(width)`."""
    init_log_variance: float | None = None
    """Log-variance of a token at the start; None leaves it near 0, where noise hides the means at first."""

    # The stacks
    plan: dict[str, Any] | None = None
    """Steps of "encoder" and "decoder" (`hiergen.nn.depth.plan`); a part that is left out runs each block once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("token_dim", "width", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("encoder_depth", "decoder_depth", "num_frequencies", "point_features"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0")
        if self.width % self.num_heads:
            raise ValueError(f"width is {self.width}, expected a multiple of num_heads, {self.num_heads}")
        tokens, points = list(self.num_tokens), self.point_counts
        if not tokens or min(tokens) < 1 or tokens != sorted(set(tokens)):
            raise ValueError(f"num_tokens is {tokens}, expected increasing numbers of tokens, coarse to fine")
        if points is not None and (not points or min(points) < 1 or list(points) != sorted(set(points), reverse=True)):
            raise ValueError(f"point_counts is {list(points)}, expected decreasing numbers of points, or None")
        if self.extent is not None and self.extent <= 0:
            raise ValueError(f"extent is {self.extent}, expected a positive number, or None")
        if self.anchor_reach is not None:
            self._check_anchors(self.anchor_reach)
        if self.embed_point_features and self.point_features != 3:
            raise ValueError(f"point_features is {self.point_features}, embed_point_features expects 3 (normals)")

    def _check_anchors(self, reach: tuple[float, ...]) -> None:
        if len(reach) != self.num_heads or min(reach) < 0:
            raise ValueError(
                f"anchor_reach is {list(reach)}, expected {self.num_heads} numbers, one per head, at least 0"
            )
        if self.queries != "learned":
            raise ValueError(f"queries is {self.queries!r}, anchor_reach expects 'learned'")
        if any(round(count ** (1 / 3)) ** 3 != count for count in self.num_tokens):
            raise ValueError(f"num_tokens is {list(self.num_tokens)}, anchor_reach expects cubes: 8, 27, 64, ...")

    @property
    def num_resolutions(self) -> int:
        """How many resolutions of the cloud the encoder reads."""
        return 1 if self.point_counts is None else len(self.point_counts)

    @property
    def embed_dim(self) -> int:
        """Channels of an embedded point."""
        return fourier_dim(self.num_frequencies)

    @property
    def input_dim(self) -> int:
        """Channels of what the encoder reads at a point: its embedding and its features."""
        return self.embed_dim + (self.embed_dim if self.embed_point_features else self.point_features)
