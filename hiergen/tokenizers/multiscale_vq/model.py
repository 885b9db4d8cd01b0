"""VAR's tokenizer: an image as the sum of ever finer maps of discrete tokens, by convolutions around a multi-scale quantizer.

    map   = to_code(encoder(image))                    (b k h/s w/s)    s the stride, k channels of a code
    ids   = residual quantization of the map, one level after another (`hiergen.bottlenecks.multiscale`)
    image = decoder(from_code(sum over levels of their codes, made as large as the map))

Letters: `b` batch, `c h w` image, `n` cells of the map, `k` channels of a code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.bottlenecks.multiscale import MultiScaleQuantizer
from hiergen.levels import square_specs
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.tokenizers.base import Tokenizer, TokenizerOutput, check_images, check_pyramid
from hiergen.tokenizers.vq_autoencoder.network import make_decoder, make_encoder


class MultiScaleVQ(Tokenizer):
    """A convolutional autoencoder whose levels are those of one residual quantizer, for square images. The defaults are VAR's.

    Every prefix of the levels is decoded to a whole image. The weights depend neither on the image size nor on the ladder, but which
    filter a level takes depends on the number of levels: `from_pretrained(..., image_size=512, sides=[1, 2, ...])` changes both.

    Args:
        widths: Channels of each resolution, finest first; their number sets the stride.
        num_blocks: Residual blocks per resolution of the encoder; the decoder has one more.
        code_dim: Channels of a code.
        vocab_size: Number of codes.
        image_size: Height and width of the images in pixels.
        sides: Side of every level, coarse to fine; the last is the image size over the stride.
        code_kernel: Kernel size of the convolutions to and from the codes, odd.
        num_filters: Number of filters through which levels are added; 0 gives every level its own (`MultiScaleQuantizer`).
        filter_ratio: Share of the convolution in these filters.
        search_cosine: Search codes by their angle to a latent, not by distance.
        commitment_weight: Weight of the loss that pulls latents to their codes.
        track_usage: Keep moving averages of the use of codes by each level, in `quantizer.usage`.

    Raises:
        ValueError: If image size, sides and widths do not fit together.

    Source:
        VAR, arXiv:2404.02905; the network is VQGAN's, arXiv:2012.09841.
    """

    _supports_gradient_checkpointing = True
    _keep_in_fp32_modules = ["quantizer"]  # type: ignore[assignment]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        *,
        widths: Sequence[int] = (160, 160, 320, 320, 640),
        num_blocks: int = 2,
        code_dim: int = 32,
        vocab_size: int = 4096,
        image_size: int = 256,
        sides: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        code_kernel: int = 3,
        num_filters: int = 4,
        filter_ratio: float = 0.5,
        search_cosine: bool = False,
        commitment_weight: float = 0.25,
        track_usage: bool = False,
    ) -> None:
        super().__init__()
        stride = 2 ** (len(widths) - 1)
        if image_size < 1 or image_size % stride:
            raise ValueError(f"image_size is {image_size}, expected a multiple of the stride {stride}")
        if not sides or sides[-1] != image_size // stride:
            raise ValueError(
                f"sides is {list(sides)}, expected to end with {image_size // stride}: image_size {image_size} over the stride {stride}"
            )
        if code_kernel < 1 or code_kernel % 2 == 0:
            raise ValueError(f"code_kernel is {code_kernel}, expected an odd number")
        self._specs = square_specs(sides, dim=code_dim, vocab_size=vocab_size)
        self.encoder = make_encoder(widths, out_channels=code_dim, num_blocks=num_blocks)
        self.to_code = nn.Conv2d(code_dim, code_dim, code_kernel, padding=code_kernel // 2)
        self.quantizer = MultiScaleQuantizer(
            vocab_size,
            code_dim,
            [(side, side) for side in sides],
            num_filters=num_filters,
            filter_ratio=filter_ratio,
            search_cosine=search_cosine,
            commitment_weight=commitment_weight,
            track_usage=track_usage,
        )
        self.from_code = nn.Conv2d(code_dim, code_dim, code_kernel, padding=code_kernel // 2)
        self.decoder = make_decoder(widths, in_channels=code_dim, num_blocks=num_blocks)

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        return self._specs

    @property
    def output_weight(self) -> Tensor:
        """The last weight before the image: its gradients balance an adversarial loss against the reconstruction."""
        return self.decoder.conv_out.weight

    @torch.no_grad()
    def encode(self, data: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None) -> TokenPyramid:
        """Return the ids of images in [-1, 1], all levels. Nothing is random; `rng` is not read.

        Raises:
            ValueError: If the images are of another size.
            TypeError: If they are not floating point.
        """
        return TokenPyramid.split(self.quantizer.encode(self.encode_latents(data)), self.specs)

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

        Args:
            pyramid: All levels or a prefix of them: ids, or the mixtures of codes `(b, n, k)` that a generator makes instead.

        Raises:
            ValueError: If the pyramid comes from another tokenizer.
        """
        mixed = tuple(dataclasses.replace(spec, vocab_size=None) for spec in self.specs)
        if pyramid.specs == mixed[: len(pyramid)]:
            return self._decode(self.quantizer.combine(pyramid.levels))
        check_pyramid(pyramid, self.specs)
        return self._decode(self.quantizer.lookup(pyramid.concat()))

    def forward(self, data: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None) -> TokenizerOutput:
        """Return reconstruction, ids and the loss of the quantizer. Nothing is random; `rng` is not read.

        Raises:
            ValueError: If the images are of another size.
            TypeError: If they are not floating point.
        """
        codes, ids, losses = self.quantizer(self.encode_latents(data))
        return TokenizerOutput(self._decode(codes), TokenPyramid.split(ids, self.specs), losses)

    def _decode(self, codes: Tensor) -> Tensor:
        codes = codes.to(self.from_code.weight.dtype)
        return self.decoder(self.from_code(rearrange(codes, "b (h w) k -> b k h w", h=self.config["sides"][-1])))
