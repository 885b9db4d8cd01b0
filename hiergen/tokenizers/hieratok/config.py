"""The options of HieraTok, each written once, and which maps follow from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from hiergen.checked import Checked, CountOrZero
from hiergen.nn.blocks.scale_transformer import PositionKind
from hiergen.nn.depth.plan import part_plan
from hiergen.nn.level_masks import AttentionForm, MaskKind
from hiergen.tokenizers.hieratok.pyramid_pooling import PoolKind

Placement = Literal["decoder", "encoder_tail", "both"]
LatentKind = Literal["finest", "all"]


@dataclasses.dataclass(frozen=True)
class HieraTokConfig(Checked):
    """The keyword arguments of `hiergen.tokenizers.hieratok.model.HieraTok`.

    Raises:
        ValueError: If the sizes do not fit together.
    """

    # Sizes
    image_size: int = 256
    """Height and width of the images in pixels."""
    patch_size: int = 16
    """Height and width, in pixels, of what a latent of the finest map covers."""
    latent_dim: int = 16
    """Channels of a latent."""
    scales: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Sides of the maps, increasing; the last one is `image_size / patch_size`."""
    encoder_dim: int = 768
    """Channels of the encoder."""
    encoder_depth: int = 12
    """Blocks of the encoder."""
    encoder_heads: int = 12
    """Attention heads of the encoder."""
    decoder_dim: int = 768
    """Channels of the decoder."""
    decoder_depth: int = 12
    """Blocks of the decoder."""
    decoder_heads: int = 12
    """Attention heads of the decoder."""
    conv_channels: CountOrZero = 0
    """Channels of residual convolutions at twice the resolution of the finest map, between pixels and the map; 0 for plain patches."""
    conv_blocks: tuple[CountOrZero, CountOrZero, CountOrZero, CountOrZero] = (2, 1, 1, 3)
    """Number of residual blocks of convolutions: of the encoder at twice the map's resolution and at the map's, of the decoder at the
    map's and at twice the map's."""

    encoder_mixer: dict[str, Any] | None = None
    """What takes the place of attention in the encoder's blocks, as `{"name": "window", "window": 4}` (`hiergen.nn.mixers`); None is
    attention over the whole map."""

    # The hierarchy
    placement: Placement = "decoder"
    """Where tokens of several scales attend to each other: "decoder", "encoder_tail" (blocks before the bottleneck, with a plain
    decoder) or "both"."""
    tail_depth: int = 4
    """Blocks of the encoder's tail."""
    latent: LatentKind = "finest"
    """"finest" stores the finest map alone and derives the coarser ones in the decoder; "all" gives every scale latents of its own,
    as a level."""
    mask: MaskKind = "scale_causal"
    """What a token sees: "scale_causal", "full", "block_diagonal", "reverse" or, with attention "masked", "region" (`ScaleMask`)."""
    attention: AttentionForm = "grouped"
    """How the mask is computed: "grouped" (one call per scale, keys cut), "masked" (one call with a dense mask), "flex" or "xformers"
    (those backends, where they can run). All agree up to rounding."""
    pool: PoolKind = "area"
    """How a map is downsampled: "area", "strided_conv" or "bilinear"."""
    positions: PositionKind = "rotary"
    """Positions of tokens: "rotary" on one frame that all scales share, or "learned"."""

    # Training
    kl_weight: float = 1e-6
    """Weight of the divergence summed over a sample's latents, relative to a pixel loss summed over the sample."""
    use_channel_shortcuts: bool = False
    """Average channels past the projection to latents, and repeat latents past the projection from them."""
    has_preview_heads: bool = False
    """Give each coarser scale a projection to pixels of its own, trained against the downsampled image."""
    preview_weight: float = 1.0
    """Weight of the loss of the preview heads."""
    alignment_dim: int | None = None
    """Channels of a teacher's features that `features["alignment"]` is projected to; None for no projection."""

    plan: dict[str, Any] | None = None
    """Steps of "encoder", "encoder_tail" and "decoder" (`hiergen.nn.depth.plan`); a part that is left out runs each block once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sides, image_size, patch_size = self.scales, self.image_size, self.patch_size
        if patch_size < 1 or image_size % patch_size:
            raise ValueError(f"patch_size is {patch_size}, expected a divisor of image_size {image_size}")
        if self.conv_channels and (patch_size % 2 or any(x % 8 for x in self._conv_widths)):
            raise ValueError(
                f"conv_channels is {self.conv_channels}, encoder_dim and decoder_dim {self.encoder_dim} and {self.decoder_dim}, "
                f"patch_size {patch_size}: convolutions need multiples of 8, and an even patch_size"
            )
        if not sides or sides[0] < 1 or list(sides) != sorted(set(sides)) or sides[-1] != image_size // patch_size:
            raise ValueError(
                f"scales is {sides}, expected increasing sides that end with {image_size // patch_size}, "
                f"which is image_size {image_size} over patch_size {patch_size}"
            )
        if self.use_channel_shortcuts and self.decoder_dim % self.latent_dim:
            raise ValueError(
                f"a channel shortcut needs latent_dim to divide decoder_dim, got {self.latent_dim}, {self.decoder_dim}"
            )

    def plan_of(self, part: str) -> Sequence[Mapping[str, Any]] | None:
        """Return the plan of one of the transformers as JSON."""
        return part_plan(self.plan, part, "encoder", "encoder_tail", "decoder")

    @property
    def _conv_widths(self) -> tuple[int, ...]:
        return self.conv_channels, self.encoder_dim, self.decoder_dim

    @property
    def has_tail(self) -> bool:
        return self.placement != "decoder"

    @property
    def has_pyramid_decoder(self) -> bool:
        return self.placement != "encoder_tail"

    @property
    def latent_scales(self) -> tuple[int, ...]:
        """Sides of the maps that are stored: the levels."""
        return self.scales if self.latent == "all" else self.scales[-1:]

    @property
    def decoder_scales(self) -> tuple[int, ...]:
        """Sides of the maps that the decoder reads: all of them where they are latents, or where it derives them."""
        return self.scales if self.has_pyramid_decoder else self.latent_scales
