"""The convolutional KL autoencoders of latent diffusion as a tokenizer: KL-16, which MAR generates on, and VA-VAE, LightningDiT's.

    latents = sample(encoder(image))       (b n k)    Gaussian, one latent per cell of the map, k channels
    image   = decoder(latents)             (b c h w)

The network is diffusers' `AutoencoderKL`; this module makes a tokenizer of it. Letters: `b` batch, `c h w` image, `n` latents of the
map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.bottlenecks.gaussian import GaussianPosterior
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.tokenizers.base import Pictures, Tokenizer, TokenizerOutput, check_images, check_pyramid


class KLAutoencoder(Tokenizer):
    """Images to one map of continuous latents and back, by convolutions.

    Latents are neither shifted nor scaled: a generator standardizes them itself.

    Args:
        autoencoder: Entries of `diffusers.AutoencoderKL`'s config; the number of blocks sets the stride.
        image_size: Height and width of the images in pixels.
        kl_weight: Weight of the divergence summed over a sample's latents, relative to a pixel loss summed over the sample.
        alignment_dim: Channels of a teacher's features that `features["alignment"]` is projected to; None for no projection.

    Raises:
        ValueError: If `image_size` is not a multiple of the stride.
        TypeError: If an entry is unknown to `AutoencoderKL`.

    Source:
        Latent diffusion, arXiv:2112.10752; VA-VAE, arXiv:2501.01423.
    """

    vae: Any
    _decoding_modules = ("vae.decoder",)
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        *,
        autoencoder: Mapping[str, Any],
        image_size: int = 256,
        kl_weight: float = 1e-6,
        alignment_dim: int | None = None,
    ) -> None:
        super().__init__()
        # Not named as its config entry, which diffusers would return in its place.
        self.vae = AutoencoderKL(**autoencoder)
        stride = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        if image_size % stride:
            raise ValueError(f"image_size is {image_size}, expected a multiple of the stride {stride}")
        side, channels = image_size // stride, self.vae.config["latent_channels"]
        self._specs = (LevelSpec(side**2, (side, side), channels),)
        self.alignment_projection: nn.Linear | None = None
        if alignment_dim is not None:
            self.alignment_projection = nn.Linear(channels, alignment_dim, bias=False)

    @classmethod
    def from_autoencoder(cls, autoencoder: Any, *, image_size: int | None = None) -> KLAutoencoder:
        """Return the tokenizer of an autoencoder, with its weights.

        Args:
            autoencoder: An `AutoencoderKL` of diffusers, from the Hub or from `hiergen.convert.ldm_vae`.
            image_size: Height and width of the images in pixels; None takes the autoencoder's `sample_size`.
        """
        config = {name: value for name, value in dict(autoencoder.config).items() if not name.startswith("_")}
        with torch.device("meta"):
            model = cls(autoencoder=config, image_size=image_size or config["sample_size"])
        model.vae = autoencoder
        return model.train(autoencoder.training)

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        return self._specs

    @property
    def output_weight(self) -> Tensor:
        """The last weight before the image: its gradients balance an adversarial loss against the reconstruction."""
        return self.vae.decoder.conv_out.weight

    @property
    def latent_weight(self) -> Tensor:
        """The encoder's last weight: its gradients balance an alignment loss against the reconstruction."""
        return self.vae.encoder.conv_out.weight

    def posterior(self, data: Float[Tensor, "b c h w"]) -> GaussianPosterior:
        """Return the distribution of the latents, as a sequence `(b, n, latent channels)`.

        Raises:
            ValueError: If the images are of another size.
            TypeError: If they are not floating point.
        """
        size = self.config["image_size"]
        check_images(data, height=size, width=size)
        moments = self.vae.encode(data.to(self.latent_weight.dtype)).latent_dist.parameters
        return GaussianPosterior(*rearrange(moments, "b (two c) h w -> two b (h w) c", two=2))

    def encode(self, data: Float[Tensor, "b c h w"] | Pictures, *, rng: torch.Generator | None = None) -> TokenPyramid:
        """Return the latents of images in [-1, 1]: a sample drawn by `rng`, or without one the mode.

        Pictures that are no tensor go through `image_processor`.

        Random draws: (b, n, latent channels) normal numbers.

        Raises:
            ValueError: If the images are of another size, or values leave [-1, 1].
            TypeError: If they are not floating point.
        """
        posterior = self.posterior(self._to_images(data))
        codes = posterior.mean if rng is None else posterior.sample(rng)
        return TokenPyramid((codes.to(self.latent_weight.dtype),), self.specs)

    def decode(self, pyramid: TokenPyramid) -> Float[Tensor, "b c h w"]:
        """Return images, not clamped.

        Raises:
            ValueError: If the pyramid comes from another tokenizer.
        """
        check_pyramid(pyramid, self.specs)
        return self._decode(pyramid.levels[0])

    def forward(self, data: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None) -> TokenizerOutput:
        """Encode and decode with gradients; in train mode the latents are drawn, (b, n, latent channels) normal numbers from `rng`.

        Losses: "kl", for a pixel loss averaged over pixels. Features: "kl" as the plain sum over a sample's latents, and with an
        alignment dimension "alignment", the projected latents.
        """
        posterior = self.posterior(data)
        codes = (posterior.sample(rng) if self.training else posterior.mean).to(self.latent_weight.dtype)
        divergence = posterior.kl()
        features = {"kl": divergence}
        if self.alignment_projection is not None:
            features["alignment"] = self.alignment_projection(codes)
        return TokenizerOutput(
            reconstruction=self._decode(codes),
            pyramid=TokenPyramid((codes,), self.specs),
            losses={"kl": self.config["kl_weight"] / data[0].numel() * divergence},
            features=features,
        )

    def _decode(self, codes: Tensor) -> Tensor:
        side = self.specs[0].grid
        assert side is not None
        # Generators give float32 at least, whatever the weights of either.
        codes = codes.to(self.latent_weight.dtype)
        return self.vae.decode(rearrange(codes, "b (h w) c -> b c h w", h=side[0])).sample
