"""LlamaGen's tokenizer: an image as one map of discrete tokens, by convolutions around a vector quantizer.

    map   = to_code(encoder(image))              (b k h/s w/s)    s the stride, k channels of a code
    ids   = argmax over i of cos(map, codebook_i) (b n)            one token per cell, row by row
    image = decoder(from_code(codebook[ids]))    (b c h w)        codes of unit length

Letters: `b` batch, `c h w` image, `n` tokens of the map, `k` channels of a code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.bottlenecks.vector import VectorQuantizer
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.tokenizers.base import Tokenizer, TokenizerOutput, check_images, check_pyramid
from hiergen.tokenizers.vq_autoencoder.network import make_decoder, make_encoder


class VQAutoencoder(Tokenizer):
    """A convolutional autoencoder with l2-normalized codes, for square images. The defaults are VQ-16.

    Args:
        widths: Channels of each resolution, finest first; their number sets the stride.
        num_blocks: Residual blocks per resolution of the encoder; the decoder has one more.
        latent_channels: Channels of the map between the convolutions and the codes.
        code_dim: Channels of a code.
        vocab_size: Number of codes.
        image_size: Height and width of the images in pixels. The weights do not depend on it.
        commitment_weight: Weight of the loss that pulls latents to their codes.
        entropy_weight: Weight of the entropy term of `VectorQuantizer`; LlamaGen trains without.

    Raises:
        ValueError: If `image_size` is no multiple of the stride, or a width no multiple of 32.

    Source:
        LlamaGen, arXiv:2406.06525, VQ-16 and VQ-8; the network is VQGAN's, arXiv:2012.09841.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        *,
        widths: Sequence[int] = (128, 128, 256, 256, 512),
        num_blocks: int = 2,
        latent_channels: int = 256,
        code_dim: int = 8,
        vocab_size: int = 16384,
        image_size: int = 256,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.0,
    ) -> None:
        super().__init__()
        stride = 2 ** (len(widths) - 1)
        if image_size < 1 or image_size % stride:
            raise ValueError(f"image_size is {image_size}, expected a multiple of the stride {stride}")
        side = image_size // stride
        self._specs = (LevelSpec(side**2, (side, side), code_dim, vocab_size),)
        self.encoder = make_encoder(widths, out_channels=latent_channels, num_blocks=num_blocks)
        self.to_code = nn.Conv2d(latent_channels, code_dim, 1)
        self.quantizer = VectorQuantizer(
            vocab_size, code_dim, commitment_weight=commitment_weight, entropy_weight=entropy_weight
        )
        self.from_code = nn.Conv2d(code_dim, latent_channels, 1)
        self.decoder = make_decoder(widths, in_channels=latent_channels, num_blocks=num_blocks)

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        return self._specs

    @property
    def output_weight(self) -> Tensor:
        """The last weight before the image: its gradients balance an adversarial loss against the reconstruction."""
        return self.decoder.conv_out.weight

    @torch.no_grad()
    def encode(self, data: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None) -> TokenPyramid:
        """Return the ids of images in [-1, 1]. Nothing is random; `rng` is not read.

        Raises:
            ValueError: If the images are of another size.
            TypeError: If they are not floating point.
        """
        return TokenPyramid((self.quantizer(self.encode_latents(data)).ids,), self.specs)

    def encode_latents(self, data: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n k"]:
        """Return the latents before the bottleneck, with gradients.

        Raises:
            ValueError: If the images are of another size.
            TypeError: If they are not floating point.
        """
        size = self.config["image_size"]
        check_images(data, height=size, width=size)
        return rearrange(self.to_code(self.encoder(data.to(self.to_code.weight.dtype))), "b k h w -> b (h w) k")

    def decode(self, pyramid: TokenPyramid) -> Float[Tensor, "b c h w"]:
        """Return images, about [-1, 1] but not clamped.

        Raises:
            ValueError: If the pyramid comes from another tokenizer.
        """
        check_pyramid(pyramid, self.specs)
        return self._decode(self.quantizer.lookup(pyramid.levels[0]))

    def forward(self, data: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None) -> TokenizerOutput:
        """Return reconstruction, ids and the losses of the quantizer. Nothing is random; `rng` is not read.

        Raises:
            ValueError: If the images are of another size.
            TypeError: If they are not floating point.
        """
        codes, ids, losses = self.quantizer(self.encode_latents(data))
        return TokenizerOutput(self._decode(codes), TokenPyramid((ids,), self.specs), losses)

    def _decode(self, codes: Tensor) -> Tensor:
        grid = self.specs[0].grid
        assert grid is not None
        return self.decoder(
            self.from_code(rearrange(codes.to(self.from_code.weight.dtype), "b (h w) k -> b k h w", h=grid[0]))
        )
