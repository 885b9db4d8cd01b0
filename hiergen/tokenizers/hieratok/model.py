"""HieraTok: a vision-transformer tokenizer whose decoder reads the latent map at several resolutions, coarse to fine.

Letters: `b` batch, `c h w` image, `n` latents of the finest map, `m` latents of all scales, `d` channels inside.

    features = encoder(image)                       (b n d)    one token per patch
    latents  = sample(bottleneck(features))         (b n k)    Gaussian, k = latent_dim channels
    pyramid  = pool(latents), coarse to fine        (b m k)    maps of sides 1, 2, 4, ...
    tokens   = decoder(pyramid)                     (b m d)    a token sees its own scale and the coarser ones
    image    = conv3x3(pixels(finest tokens))       (b c h w)

With `latent="finest"` there is one level, the finest map; the coarser scales are derived from it inside. With `latent="all"` every
scale has latents of its own and is a level: features are pooled before the bottleneck. One scale alone is the single-scale baseline,
on the same code path.

The paper (arXiv:2509.23736) gives the idea, the numbers and no code: a map of tokens, downsampled to several scales, in one sequence
with attention from coarse to fine. Sizes, losses and positions are ours; every choice is an option.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.bottlenecks.gaussian import GaussianBottleneck, GaussianPosterior
from hiergen.nn.blocks.layers import make_norm
from hiergen.nn.blocks.scale_transformer import ScaleTransformer
from hiergen.nn.blocks.transformer import TransformerBlock
from hiergen.nn.depth.stack import BlockStack, PlanJson
from hiergen.nn.initialization import init_truncated_normal
from hiergen.nn.mixers.grids import GridMixer
from hiergen.nn.running.checkpointing import CheckpointedModule
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.tokenizers.base import Pictures, Tokenizer, TokenizerOutput, check_images, check_pyramid, configured
from hiergen.tokenizers.hieratok.config import HieraTokConfig
from hiergen.tokenizers.hieratok.convolutions import ConvPatches, ConvPixels, start_as_identity
from hiergen.tokenizers.hieratok.pyramid_pooling import PyramidPool


class PatchEncoder(CheckpointedModule):
    """Image to a map of features: a strided convolution, learned positions, blocks with full attention, no norm at the end.

    Args:
        image_size: Side of the image.
        patch_size: Side of a patch.
        dim: Channels.
        depth: Blocks.
        num_heads: Attention heads.
        patches: What takes the place of the strided convolution.
        mixer: What takes the place of attention (`GridMixer`); None is attention.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        *,
        patches: ConvPatches | None = None,
        mixer: Mapping[str, Any] | None = None,
        plan: PlanJson | None = None,
    ) -> None:
        super().__init__()
        side = image_size // patch_size
        self.patch_embed: Any = nn.Conv2d(3, dim, patch_size, stride=patch_size) if patches is None else patches
        self.position_embed = nn.Parameter(torch.empty(side**2, dim))
        nn.init.normal_(self.position_embed, std=0.02)
        blocks = (
            TransformerBlock(dim, num_heads, mixer=GridMixer(mixer, dim, num_heads, [(side, side)]) if mixer else None)
            for _ in range(depth)
        )
        self.blocks = BlockStack(blocks, plan, dim=dim, num_tokens=side**2)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return one feature per patch, row-major."""
        if isinstance(self.patch_embed, ConvPatches):
            x = self.patch_embed(images)
        else:
            x = self.patch_embed(images.to(self.patch_embed.weight.dtype)).flatten(2).transpose(1, 2)
        return self.blocks(x + self.position_embed)


class HieraTok(Tokenizer, CheckpointedModule):  # type: ignore[misc]  # see Tokenizer
    """Images to a continuous map of latents and back. Options are the fields of `HieraTokConfig`, as keyword arguments.

    Raises:
        ValueError: If an option or a choice is unknown, or sizes do not fit together.

    Source:
        HieraTok, arXiv:2509.23736 (idea); layout of the vision transformer as in DeTok and VA-VAE, arXiv:2501.01423.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerBlock"]  # type: ignore[assignment]  # noqa: RUF012

    @configured(HieraTokConfig)
    def __init__(self, layout: HieraTokConfig) -> None:
        super().__init__()
        self.layout = layout
        self._build_encoder(layout)
        self._build_decoder(layout)
        init_truncated_normal(self)
        for module in self.modules():
            if isinstance(module, PyramidPool):
                module.reset_parameters()
        start_as_identity(self)
        # The last convolution starts as the identity, so that it can only smooth the seams of patches once that helps.
        nn.init.dirac_(self.final_conv.weight)

    def _build_encoder(self, layout: HieraTokConfig) -> None:
        dim, heads, latent_dim = layout.encoder_dim, layout.encoder_heads, layout.latent_dim
        patches = None
        if layout.conv_channels:
            patches = ConvPatches(
                layout.patch_size, layout.conv_channels, dim, (layout.conv_blocks[0], layout.conv_blocks[1])
            )
        self.encoder = PatchEncoder(
            layout.image_size,
            layout.patch_size,
            dim,
            layout.encoder_depth,
            heads,
            patches=patches,
            mixer=layout.encoder_mixer,
            plan=layout.plan_of("encoder"),
        )
        self.feature_pool: PyramidPool | None = None
        if layout.has_tail or layout.latent == "all":
            self.feature_pool = PyramidPool(dim, layout.scales, kind=layout.pool)
        self.encoder_tail: ScaleTransformer | None = None
        if layout.has_tail:
            self.encoder_tail = ScaleTransformer(
                dim,
                layout.tail_depth,
                heads,
                sides=layout.scales,
                mask=layout.mask,
                attention=layout.attention,
                positions=layout.positions,
                plan=layout.plan_of("encoder_tail"),
            )
        self.encoder_norm = make_norm("rms", dim)
        # The task averages pixel losses, the weight is for their sum.
        kl_weight = layout.kl_weight / (3 * layout.image_size**2)
        self.bottleneck = GaussianBottleneck(
            dim, latent_dim, kl_weight=kl_weight, use_channel_shortcut=layout.use_channel_shortcuts
        )
        self.alignment_projection: nn.Linear | None = None
        if layout.alignment_dim is not None:
            self.alignment_projection = nn.Linear(latent_dim, layout.alignment_dim, bias=False)

    def _build_decoder(self, layout: HieraTokConfig) -> None:
        dim, pixels = layout.decoder_dim, 3 * layout.patch_size**2
        self.latent_pool: PyramidPool | None = None
        if layout.has_pyramid_decoder and layout.latent == "finest":
            self.latent_pool = PyramidPool(layout.latent_dim, layout.scales, kind=layout.pool)
        self.from_latents = nn.Linear(layout.latent_dim, dim)
        self.decoder = ScaleTransformer(
            dim,
            layout.decoder_depth,
            layout.decoder_heads,
            sides=layout.decoder_scales,
            mask=layout.mask if layout.has_pyramid_decoder else "full",
            attention=layout.attention,
            positions=layout.positions,
            plan=layout.plan_of("decoder"),
        )
        self.decoder_norm = make_norm("rms", dim)
        self.to_pixels: nn.Linear | ConvPixels = nn.Linear(dim, pixels)
        if layout.conv_channels:
            self.to_pixels = ConvPixels(
                layout.patch_size, layout.conv_channels, dim, (layout.conv_blocks[2], layout.conv_blocks[3])
            )
        self.final_conv = nn.Conv2d(3, 3, 3, padding=1)
        coarser = layout.decoder_scales[:-1] if layout.has_preview_heads else ()
        self.preview_heads = nn.ModuleList(nn.Linear(dim, pixels) for _ in coarser)

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        return tuple(LevelSpec(side**2, (side, side), self.layout.latent_dim) for side in self.layout.latent_scales)

    @property
    def num_previews(self) -> int:
        """How many scales the decoder reads: what `preview` can choose from."""
        return len(self.layout.decoder_scales)

    @property
    def output_weight(self) -> Tensor:
        """The last weight before the image: its gradients balance an adversarial loss against the reconstruction."""
        return self.final_conv.weight

    @property
    def latent_weight(self) -> Tensor:
        """The last weight before the latents: its gradients balance an alignment loss against the reconstruction."""
        return self.bottleneck.to_moments.weight

    def posterior(self, data: Float[Tensor, "b c h w"]) -> GaussianPosterior:
        """Return the distribution of the latents of all levels, as one sequence `(b, m, latent_dim)`.

        Raises:
            ValueError: If the images are of another size.
            TypeError: If they are not floating point.
        """
        return self.bottleneck.posterior(self._encode_features(data))

    def encode(self, data: Float[Tensor, "b c h w"] | Pictures, *, rng: torch.Generator | None = None) -> TokenPyramid:
        """Return the latents of images in [-1, 1]: a sample drawn by `rng`, or without one the mode.

        Pictures that are no tensor go through `image_processor`.

        Random draws: (b, m, latent_dim) normal numbers.

        Raises:
            ValueError: If the images are of another size, or values leave [-1, 1].
            TypeError: If they are not floating point.
        """
        posterior = self.posterior(self._to_images(data))
        codes = posterior.mean if rng is None else posterior.sample(rng)
        return TokenPyramid.split(codes.to(self.from_latents.weight.dtype), self.specs)

    def decode(self, pyramid: TokenPyramid) -> Float[Tensor, "b c h w"]:
        """Return images, not clamped. A prefix of the levels gives the preview of its finest, enlarged to the image's size.

        Raises:
            ValueError: If the pyramid comes from another tokenizer.
        """
        check_pyramid(pyramid, self.specs)
        if len(pyramid) < len(self.specs):
            tokens = self.decoder(self._embed_latents(pyramid.concat()))
            return self._enlarge(self._level_pixels(tokens, len(pyramid) - 1))
        return self._level_pixels(self.decoder(self._pyramid_tokens(pyramid.concat())), self.num_previews - 1)

    def preview(self, data: Float[Tensor, "b c h w"] | TokenPyramid, num_scales: int) -> Float[Tensor, "b c s s"]:
        """Return images of side `scales[num_scales - 1] * patch_size` decoded from the coarsest scales alone.

        Exactly what these scales' tokens are in the full decoding, at a fraction of its work. Useful pictures need
        `has_preview_heads`, or a generator's levels; with all scales it is `decode`.

        Args:
            data: Images (encoded here, by their mode) or a pyramid that holds the levels needed.
            num_scales: How many scales, 1 to `num_previews`.

        Raises:
            ValueError: If the coarse scales depend on finer ones in this model, the pyramid holds too few levels or comes from
                another tokenizer, or `num_scales` is out of range.
        """
        if not self.decoder.mask.is_prefix_exact:
            raise ValueError(
                f"a preview needs coarse scales that see no finer ones, mask is {self.decoder.mask.kind!r}"
            )
        if not 1 <= num_scales <= self.num_previews:
            raise ValueError(f"num_scales is {num_scales}, expected 1 to {self.num_previews}")
        pyramid = data if isinstance(data, TokenPyramid) else self.encode(data)
        check_pyramid(pyramid, self.specs)
        needed = num_scales if self.layout.latent == "all" else 1
        if len(pyramid) < needed:
            raise ValueError(f"the pyramid holds {len(pyramid)} levels, {num_scales} scales need {needed}")
        if self.layout.latent == "all":
            tokens = self._embed_latents(pyramid.prefix(num_scales).concat())
        else:
            count = sum(side**2 for side in self.layout.decoder_scales[:num_scales])
            tokens = self._pyramid_tokens(pyramid.concat())[:, :count]
        return self._level_pixels(self.decoder(tokens), num_scales - 1)

    def forward(self, data: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None) -> TokenizerOutput:
        """Encode and decode with gradients; in train mode the latents are drawn, (b, m, latent_dim) normal numbers from `rng`.

        Losses: "kl", for a pixel loss averaged over pixels, and with preview heads "preview". Features: "kl" as the plain sum
        over a sample's latents (for the objective of VA-VAE, which sums over pixels too), and with an alignment dimension
        "alignment", the projected latents of the finest map `(b, n, alignment_dim)`.
        """
        posterior = self.posterior(data)
        codes = posterior.sample(rng) if self.training else posterior.mean
        codes = codes.to(self.from_latents.weight.dtype)
        tokens = self.decoder(self._pyramid_tokens(codes))
        divergence = posterior.kl()
        losses = {"kl": self.bottleneck.kl_weight * divergence}
        if len(self.preview_heads):
            losses["preview"] = self.layout.preview_weight * self._preview_loss(tokens, data)
        features = {"kl": divergence}
        if self.alignment_projection is not None:
            features["alignment"] = self.alignment_projection(codes[:, -(self.layout.scales[-1] ** 2) :])
        return TokenizerOutput(
            reconstruction=self._level_pixels(tokens, self.num_previews - 1),
            pyramid=TokenPyramid.split(codes, self.specs),
            losses=losses,
            features=features,
        )

    def _encode_features(self, images: Tensor) -> Tensor:
        size = self.layout.image_size
        check_images(images, height=size, width=size)
        x = self.encoder(images)
        if self.feature_pool is not None:
            x = self.feature_pool(x)
        if self.encoder_tail is not None:
            x = self.encoder_tail(x)
        if self.layout.latent == "finest":
            x = x[:, -(self.layout.scales[-1] ** 2) :]
        return self.encoder_norm(x)

    def _pyramid_tokens(self, codes: Tensor) -> Tensor:
        return self._embed_latents(codes if self.latent_pool is None else self.latent_pool(codes))

    def _embed_latents(self, codes: Tensor) -> Tensor:
        # Generators give float32 at least, whatever the weights of either.
        codes = codes.to(self.from_latents.weight.dtype)
        x = self.from_latents(codes)
        if self.layout.use_channel_shortcuts:
            x = x + codes.repeat_interleave(x.shape[-1] // codes.shape[-1], dim=-1)
        return x

    def _level_pixels(self, tokens: Tensor, level: int) -> Tensor:
        """Return the picture of one scale from the decoder's tokens; tokens of finer scales may be missing."""
        x = self.decoder_norm(_level(tokens, self.layout.decoder_scales, level))
        is_finest = level == self.num_previews - 1
        own_head = len(self.preview_heads) > 0 and not is_finest
        x = self.preview_heads[level](x) if own_head else self.to_pixels(x)
        if x.ndim == 4:
            return self.final_conv(x)
        p, side = self.layout.patch_size, self.layout.decoder_scales[level]
        image = rearrange(x, "b (h w) (c p q) -> b c (h p) (w q)", h=side, w=side, p=p, q=p)
        return image if own_head else self.final_conv(image)

    def _enlarge(self, image: Tensor) -> Tensor:
        size = self.layout.image_size
        return F.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)

    def _preview_loss(self, tokens: Tensor, images: Tensor) -> Tensor:
        errors = []
        for level in range(self.num_previews - 1):
            preview = self._level_pixels(tokens, level).float()
            errors.append((preview - F.adaptive_avg_pool2d(images.float(), preview.shape[-1])).abs().mean())
        return torch.stack(errors).mean()


def _level(tokens: Tensor, sides: Sequence[int], level: int) -> Tensor:
    start = sum(side**2 for side in sides[:level])
    return tokens[:, start : start + sides[level] ** 2]
