"""The convolutional encoder and decoder of VQGAN and latent diffusion, as diffusers has them, for tokenizers with a bottleneck of their own.

Blocks per resolution: `num_blocks` in the encoder, one more in the decoder, attention after each at the coarsest resolution and between the
two blocks of the middle. The stride is 2 to the number of widths less one.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.models.autoencoders.vae import Decoder, Encoder

#: Groups of every group norm, which the widths must be multiples of.
_NORM_GROUPS = 32


def make_encoder(widths: Sequence[int], *, out_channels: int, num_blocks: int = 2) -> Encoder:
    """Return images `(b, 3, h, w)` -> maps `(b, out_channels, h / stride, w / stride)`.

    Args:
        widths: Channels of each resolution, finest first.
        out_channels: Channels of the map.
        num_blocks: Residual blocks per resolution.

    Raises:
        ValueError: If there is no width, or one is no multiple of 32.

    Source:
        VQGAN, arXiv:2012.09841; VAR, arXiv:2404.02905, and LlamaGen, arXiv:2406.06525, have it with other widths.
    """
    _check(widths)
    plain = ["DownEncoderBlock2D"] * (len(widths) - 1)
    return Encoder(
        out_channels=out_channels,
        down_block_types=(*plain, "AttnDownEncoderBlock2D"),
        block_out_channels=tuple(widths),
        layers_per_block=num_blocks,
        norm_num_groups=_NORM_GROUPS,
        double_z=False,
    )


def make_decoder(widths: Sequence[int], *, in_channels: int, num_blocks: int = 2) -> Decoder:
    """Return maps `(b, in_channels, h, w)` -> images `(b, 3, h * stride, w * stride)`, the mirror image of `make_encoder`.

    Args:
        widths: Channels of each resolution, finest first, as in the encoder.
        in_channels: Channels of the map.
        num_blocks: Residual blocks per resolution of the encoder; the decoder has one more.

    Raises:
        ValueError: If there is no width, or one is no multiple of 32.
    """
    _check(widths)
    plain = ["UpDecoderBlock2D"] * (len(widths) - 1)
    return Decoder(
        in_channels=in_channels,
        up_block_types=("AttnUpDecoderBlock2D", *plain),
        block_out_channels=tuple(widths),
        layers_per_block=num_blocks,
        norm_num_groups=_NORM_GROUPS,
    )


def _check(widths: Sequence[int]) -> None:
    if not widths or any(width < 1 or width % _NORM_GROUPS for width in widths):
        raise ValueError(f"widths is {list(widths)}, expected at least one multiple of {_NORM_GROUPS}")
