"""The options of MaskGIT-VQGAN: those of its convolutions, which TiTok's pixel decoder shares, and those of the whole tokenizer."""

from __future__ import annotations

import dataclasses

from hiergen.checked import Checked, Count, NotNegative
from hiergen.nn.blocks.convnet import ConvNetConfig, Shortcut


@dataclasses.dataclass(frozen=True)
class PixelOptions(Checked):
    """Options of an image and of the convolutions between its pixels and a small map. The defaults are the published ones."""

    image_size: Count = 256
    """Height and width in pixels."""
    in_channels: Count = 3
    """Channels of the image."""
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
    cnn_shortcut: Shortcut = "branch"
    """What blocks that change the channels add: "branch" (published), or "input" as an ordinary residual block does."""
    z_channels: int = 256
    """Channels of the small map, which are those of a code of MaskGIT-VQGAN."""

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


@dataclasses.dataclass(frozen=True)
class MaskGITVQConfig(PixelOptions):
    """The keyword arguments of `hiergen.tokenizers.maskgit_vqgan.model.MaskGITVQ`.

    Raises:
        ValueError: If the sizes do not fit together.
    """

    vocab_size: Count = 1024
    """Number of codes in the codebook."""
    commitment_weight: NotNegative = 1.0
    """Weight of the loss that pulls latents to their codes. The published program has the usual two weights exchanged."""
    codebook_weight: NotNegative = 0.25
    """Weight of the loss that pulls codes to their latents."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % self.convnet.stride:
            raise ValueError(
                f"image_size is {self.image_size}, expected a multiple of the convolutions' stride, {self.convnet.stride}"
            )
