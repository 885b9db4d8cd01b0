"""MaskGIT-VQGAN: an image as a map of ids. RAR generates them, and TiTok learns from them in its first stage ("proxy codes").

Letters: `b` batch, `c h w` image, `n` cells of the map, `z` channels of a cell.

    map   = pixel_encoder((image + 1) / 2)              (b z h/16 w/16)
    ids   = argmin over k of |map - codebook_k|         (b n), row-major, no normalization
    image = 2 pixel_decoder(codebook[ids]) - 1
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from hiergen.bottlenecks.vector import VectorQuantizer, nearest_ids
from hiergen.nn.blocks.convnet import ConvDecoder, ConvEncoder
from hiergen.nn.running.precision import widen, without_autocast
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.tokenizers.base import Tokenizer, TokenizerOutput, check_images, check_pyramid, configured
from hiergen.tokenizers.maskgit_vqgan.config import MaskGITVQConfig


class MaskGITVQ(Tokenizer):
    """A convolutional tokenizer with a plain codebook, for square images.

    Options are the fields of `MaskGITVQConfig`, as keyword arguments; the defaults are the published model.

    Raises:
        ValueError: If an option is unknown, or the sizes do not fit together.

    Source:
        MaskGIT, arXiv:2202.04200, as TiTok (arXiv:2406.07550) and RAR (arXiv:2411.00776) use it.
    """

    _supports_gradient_checkpointing = True
    _keep_in_fp32_modules = ["pixel_decoder"]  # type: ignore[assignment]  # noqa: RUF012

    @configured(MaskGITVQConfig)
    def __init__(self, layout: MaskGITVQConfig) -> None:
        super().__init__()
        self.side = side = layout.image_size // layout.convnet.stride
        self.image_size, self.in_channels = layout.image_size, layout.in_channels
        self._specs = (LevelSpec(side**2, (side, side), dim=layout.z_channels, vocab_size=layout.vocab_size),)
        self.pixel_encoder = ConvEncoder(layout.convnet)
        self.quantizer = VectorQuantizer(
            layout.vocab_size,
            layout.z_channels,
            commitment_weight=layout.commitment_weight,
            codebook_weight=layout.codebook_weight,
            normalize=False,
        )
        self.pixel_decoder = ConvDecoder(layout.convnet)

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        return self._specs

    def encode_latents(self, data: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b n z"], Float[Tensor, "b z s t"]]:
        """Return the latents before the bottleneck as a sequence and as a map, with gradients.

        Raises:
            ValueError: If the images have another size or number of channels than the model.
            TypeError: If they are not floating point.
        """
        check_images(data, height=self.image_size, width=self.image_size, channels=self.in_channels)
        cells = self.pixel_encoder(((data + 1) / 2).to(self.pixel_encoder.conv_in.weight.dtype))
        return rearrange(cells, "b z s t -> b (s t) z"), cells

    @torch.no_grad()
    def encode(self, data: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None) -> TokenPyramid:
        """Return the ids of images in [-1, 1]. Nothing is random; `rng` is not read.

        Raises:
            ValueError: If the images have another size or number of channels than the model.
            TypeError: If they are not floating point.
        """
        latents, _ = self.encode_latents(data)
        with without_autocast(latents.device):
            ids: Int[Tensor, "b n"] = nearest_ids(widen(latents), widen(self.quantizer.codebook))
        return TokenPyramid((ids,), self.specs)

    def decode(self, pyramid: TokenPyramid) -> Float[Tensor, "b c h w"]:
        """Return images, about [-1, 1] but not clamped.

        Raises:
            ValueError: If the pyramid comes from another tokenizer.
        """
        check_pyramid(pyramid, self.specs)
        return self._to_images(self.quantizer.lookup(pyramid.levels[0]))

    def forward(self, data: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None) -> TokenizerOutput:
        """Return reconstruction, ids and the loss "quantizer"; the gradient passes straight through to the latents.

        Raises:
            ValueError: If the images have another size or number of channels than the model.
            TypeError: If they are not floating point.
        """
        codes, ids, losses = self.quantizer(self.encode_latents(data)[0])
        return TokenizerOutput(self._to_images(codes), TokenPyramid((ids,), self.specs), losses)

    def _to_images(self, codes: Tensor) -> Tensor:
        cells = rearrange(codes, "b (s t) z -> b z s t", s=self.side)
        return 2 * self.pixel_decoder(cells.to(self.pixel_decoder.conv_in.weight.dtype)) - 1
