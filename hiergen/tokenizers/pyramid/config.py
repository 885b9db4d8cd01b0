"""The options of the pyramid tokenizer, each written once, and their checks."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from hiergen.checked import Checked, Count, CountOrZero, NotNegative, Share
from hiergen.nn.blocks.convnet import ConvNetConfig


@dataclasses.dataclass(frozen=True)
class PyramidConfig(Checked):
    """The keyword arguments of `hiergen.tokenizers.pyramid.model.PyramidTokenizer`.

    Raises:
        ValueError: If a value is out of its range, or two do not fit together.
    """

    # Sizes
    image_size: Count = 32
    """Height of the images in pixels, and their width where `image_width` is None."""
    image_width: Count | None = None
    """Width of the images in pixels, where it is not their height."""
    in_channels: Count = 3
    """Channels of the images."""

    # Encoder
    backbone: str = "mixer:depthwise"
    """Features of the levels: "timm:" and a network of timm, or "mixer:" and a token mixer of ours (`PyramidEncoder.create`)."""
    backbone_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the backbone, e.g. `{"out_indices": [2, 3]}` or `{"widths": [32, 64, 128]}`."""
    backbone_weights: str | None = "random"
    """Weights that a network of timm starts from: "random", a file, or None for timm's cache or download. They are read once; a saved
    model has its own, and says "random"."""

    # Levels
    code_dim: Count = 8
    """Channels of a token, the same for all levels."""
    vocab_size: Count | None = 256
    """Number of codes, which all levels share; None makes tokens continuous, with a Gaussian bottleneck per level."""
    quantizer: Literal["gain", "plain", "fsq"] = "gain"
    """Discrete codes: "gain" has unit vectors and a learned factor per level, "plain" vectors of any length, "fsq" rounds every channel
    (`fsq_levels`), with a factor per level too. Unread with continuous tokens."""
    fsq_levels: tuple[Count, ...] = (8, 5, 5, 5)
    """Number of values of each channel with "fsq": `code_dim` numbers, whose product is `vocab_size`."""
    refine: bool = True
    """Add a 3 x 3 convolution, shared by all levels, to what is made larger for the next level; it is zero at the start."""

    # Decoder
    decoder_channels: Count = 64
    """Channels of the decoder at its finest resolution."""
    decoder_multipliers: tuple[Count, ...] = (1, 2, 2)
    """Channels of each resolution of the decoder, fine to coarse, as multiples of `decoder_channels`."""
    decoder_blocks: Count = 1
    """Residual blocks of each resolution of the decoder."""
    decoder_mid_blocks: CountOrZero = 1
    """Residual blocks at the coarsest resolution of the decoder, beyond `decoder_blocks`."""
    decoder_groups: Count = 8
    """Groups of every group norm of the decoder."""
    decoder_stem: Count = 1
    """Side of the squares of pixels that the decoder makes at once."""

    # Training
    drop_prob: Share = 0.5
    """Probability that a sample of a training batch is decoded from a prefix of its levels (nested dropout)."""
    commitment_weight: NotNegative = 0.25
    """Weight of the loss that pulls latents to their codes; that of the codes to their latents has weight 1."""
    entropy_weight: NotNegative = 0.0
    """Weight of the entropy term of the codebook (`VectorQuantizer`)."""
    kl_weight: NotNegative = 1e-6
    """Weight of the divergence of continuous tokens, summed over a sample's numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = self.fsq_levels
        is_fsq = self.vocab_size is not None and self.quantizer == "fsq"
        if is_fsq and (len(levels) != self.code_dim or math.prod(levels) != self.vocab_size):
            raise ValueError(
                f"fsq_levels is {list(levels)}, expected code_dim, {self.code_dim}, numbers whose product is vocab_size, {self.vocab_size}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.image_size, self.image_width or self.image_size

    @property
    def decoder(self) -> ConvNetConfig:
        """The sizes of the decoder."""
        return ConvNetConfig(
            image_channels=self.in_channels,
            channels=self.decoder_channels,
            multipliers=self.decoder_multipliers,
            blocks=self.decoder_blocks,
            mid_blocks=self.decoder_mid_blocks,
            z_channels=self.code_dim,
            groups=self.decoder_groups,
            stem=self.decoder_stem,
            shortcut="input",
        )
