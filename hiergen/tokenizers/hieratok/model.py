"""HieraTok: a vision-transformer tokenizer whose decoder reads the latent map at several resolutions, coarse to fine.

The paper (arXiv:2509.23736) gives the idea, the numbers and no code: a map of tokens, downsampled to several scales, in one sequence
with attention from coarse to fine. Sizes, losses and positions are ours; every choice is a config value.

Letters: `b` batch, `c h w` image, `n` latents of the finest map, `m` latents of all scales, `d` channels inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.bottlenecks.gaussian import GaussianBottleneck, GaussianPosterior
from hiergen.nn.blocks.layers import make_norm
from hiergen.nn.blocks.scale_transformer import PositionKind, ScaleTransformer
from hiergen.nn.blocks.transformer import TransformerBlock
from hiergen.nn.checkpointing import CheckpointedModule
from hiergen.nn.initialization import init_truncated_normal
from hiergen.nn.level_masks import AttentionForm, MaskKind
from hiergen.nn.pyramid_pooling import PoolKind, PyramidPool
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.tokenizers.base import Tokenizer, TokenizerOutput, check_images, check_pyramid

Placement = Literal["decoder", "encoder_tail", "both"]
LatentKind = Literal["finest", "all"]


class PatchEncoder(CheckpointedModule):
    """Image to a map of features: a strided convolution, learned positions, blocks with full attention, a norm-free end.

    Args:
        image_size: Side of the image.
        patch_size: Side of a patch.
        dim: Channels.
        depth: Blocks.
        num_heads: Attention heads.
    """

    def __init__(self, image_size: int, patch_size: int, dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        self.position_embed = nn.Parameter(torch.empty((image_size // patch_size) ** 2, dim))
        nn.init.normal_(self.position_embed, std=0.02)
        self.blocks = nn.ModuleList(TransformerBlock(dim, num_heads) for _ in range(depth))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return one feature a patch, row-major."""
        x = self.patch_embed(images.to(self.patch_embed.weight.dtype)).flatten(2).transpose(1, 2)
        x = x + self.position_embed
        for block in self.blocks:
            x = self.run(block, x)
        return x


class HieraTok(Tokenizer, CheckpointedModule):  # type: ignore[misc]  # see Tokenizer
    """Images to a continuous map of latents and back.

    encoder -> [masked blocks over the pooled features] -> Gaussian bottleneck -> map of latents -> pooled to all scales -> decoder
    with scale-causal attention -> the finest tokens -> pixels -> 3 x 3 convolution.

    With `latent="finest"` there is one level, the finest map; the coarser scales are derived from it inside. With `latent="all"` every
    scale has latents of its own and is a level. One scale alone is the single-scale baseline, on the same code path.

    Args:
        image_size: Side of the images.
        patch_size: Pixels that a latent of the finest map covers, along each side.
        latent_dim: Channels of a latent.
        scales: Sides of the maps, increasing; the last is `image_size / patch_size`.
        encoder_dim: Channels of the encoder.
        encoder_depth: Its blocks.
        encoder_heads: Its attention heads.
        decoder_dim: Channels of the decoder.
        decoder_depth: Its blocks.
        decoder_heads: Its attention heads.
        placement: Where tokens of several scales attend to each other: "decoder", "encoder_tail" (blocks before the bottleneck, a
            plain decoder) or "both".
        tail_depth: Blocks of the encoder's tail.
        latent: "finest" or "all".
        mask: "scale_causal", "full", "block_diagonal" or "reverse".
        attention: "grouped" (one call a scale, keys cut) or "masked" (one call with a dense mask); equal up to rounding.
        pool: "area", "strided_conv" or "bilinear".
        positions: "rotary" on one common frame, or "learned".
        kl_weight: Weight of the divergence summed over a sample's latents, relative to a pixel loss summed over the sample.
        use_channel_shortcuts: Average channels past the projection to latents, and repeat latents past the projection from them.
        has_preview_heads: Give each coarser scale its own projection to pixels, trained against the downsampled image.
        preview_weight: Weight of that loss.
        alignment_dim: Channels of a teacher's features that `features["alignment"]` is projected to; None for no projection.

    Raises:
        ValueError: If sizes do not fit together or a choice is unknown.

    Source:
        HieraTok, arXiv:2509.23736 (idea); layout of the vision transformer as in DeTok and VA-VAE, arXiv:2501.01423.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerBlock"]  # type: ignore[assignment]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        *,
        image_size: int = 256,
        patch_size: int = 16,
        latent_dim: int = 16,
        scales: Sequence[int] = (1, 2, 4, 8, 16),
        encoder_dim: int = 768,
        encoder_depth: int = 12,
        encoder_heads: int = 12,
        decoder_dim: int = 768,
        decoder_depth: int = 12,
        decoder_heads: int = 12,
        placement: Placement = "decoder",
        tail_depth: int = 4,
        latent: LatentKind = "finest",
        mask: MaskKind = "scale_causal",
        attention: AttentionForm = "grouped",
        pool: PoolKind = "area",
        positions: PositionKind = "rotary",
        kl_weight: float = 1e-6,
        use_channel_shortcuts: bool = False,
        has_preview_heads: bool = False,
        preview_weight: float = 1.0,
        alignment_dim: int | None = None,
    ) -> None:
        super().__init__()
        self._scales = _check_scales(scales, image_size, patch_size)
        _check_choices(placement=placement, latent=latent)
        if use_channel_shortcuts and decoder_dim % latent_dim:
            raise ValueError(
                f"a channel shortcut needs latent_dim to divide decoder_dim, got {latent_dim}, {decoder_dim}"
            )
        # The maps that the decoder reads: all of them where they are latents, or where it derives them.
        has_pyramid_decoder = placement != "encoder_tail"
        self._decoder_scales = self._scales if has_pyramid_decoder or latent == "all" else self._scales[-1:]
        self._build_encoder()
        self._build_decoder()
        self._init_weights()

    def _build_encoder(self) -> None:
        config = self.config
        dim, latent_dim, heads = config["encoder_dim"], config["latent_dim"], config["encoder_heads"]
        self.encoder = PatchEncoder(config["image_size"], config["patch_size"], dim, config["encoder_depth"], heads)
        has_tail = config["placement"] != "decoder"
        self.feature_pool: PyramidPool | None = None
        if has_tail or config["latent"] == "all":
            self.feature_pool = PyramidPool(dim, self._scales, kind=config["pool"])
        self.encoder_tail: ScaleTransformer | None = None
        if has_tail:
            self.encoder_tail = self._scale_transformer("encoder", config["tail_depth"], self._scales, config["mask"])
        self.encoder_norm = make_norm("rms", dim)
        self.bottleneck = GaussianBottleneck(
            dim,
            latent_dim,
            # The task averages pixel losses, the weight is for their sum.
            kl_weight=config["kl_weight"] / (3 * config["image_size"] ** 2),
            use_channel_shortcut=config["use_channel_shortcuts"],
        )
        self.alignment_projection: nn.Linear | None = None
        if config["alignment_dim"] is not None:
            self.alignment_projection = nn.Linear(latent_dim, config["alignment_dim"], bias=False)

    def _build_decoder(self) -> None:
        config = self.config
        dim, pixels = config["decoder_dim"], 3 * config["patch_size"] ** 2
        has_pyramid = config["placement"] != "encoder_tail"
        self.latent_pool: PyramidPool | None = None
        if has_pyramid and config["latent"] == "finest":
            self.latent_pool = PyramidPool(config["latent_dim"], self._scales, kind=config["pool"])
        self.from_latents = nn.Linear(config["latent_dim"], dim)
        mask: MaskKind = config["mask"] if has_pyramid else "full"
        self.decoder = self._scale_transformer("decoder", config["decoder_depth"], self._decoder_scales, mask)
        self.decoder_norm = make_norm("rms", dim)
        self.to_pixels = nn.Linear(dim, pixels)
        self.final_conv = nn.Conv2d(3, 3, 3, padding=1)
        coarser = self._decoder_scales[:-1] if config["has_preview_heads"] else ()
        self.preview_heads = nn.ModuleList(nn.Linear(dim, pixels) for _ in coarser)

    def _scale_transformer(self, part: str, depth: int, sides: tuple[int, ...], mask: MaskKind) -> ScaleTransformer:
        return ScaleTransformer(
            self.config[f"{part}_dim"],
            depth,
            self.config[f"{part}_heads"],
            sides=sides,
            mask=mask,
            attention=self.config["attention"],
            positions=self.config["positions"],
        )

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        sides = self._scales if self.config["latent"] == "all" else self._scales[-1:]
        return tuple(LevelSpec(side**2, (side, side), self.config["latent_dim"]) for side in sides)

    @property
    def num_previews(self) -> int:
        """How many scales the decoder reads: what `preview` can choose from."""
        return len(self._decoder_scales)

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

    def encode(self, data: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None) -> TokenPyramid:
        """Return the latents of images in [-1, 1]: a sample drawn by `rng`, or without one the mode.

        Random draws: (b, m, latent_dim) normal numbers.

        Raises:
            ValueError: If the images are of another size.
            TypeError: If they are not floating point.
        """
        posterior = self.posterior(data)
        codes = posterior.mean if rng is None else posterior.sample(rng)
        return TokenPyramid.split(codes.to(self.from_latents.weight.dtype), self.specs)

    def decode(self, pyramid: TokenPyramid) -> Float[Tensor, "b c h w"]:
        """Return images, not clamped. Of a prefix of the levels, the preview of its finest, enlarged to the image's size.

        Raises:
            ValueError: If the pyramid is another tokenizer's.
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
            ValueError: If the coarse scales depend on finer ones in this model, the pyramid holds too few levels or is another
                tokenizer's, or `num_scales` is out of range.
        """
        if not self.decoder.mask.is_prefix_exact:
            raise ValueError(
                f"a preview needs coarse scales that see no finer ones, mask is {self.decoder.mask.kind!r}"
            )
        if not 1 <= num_scales <= self.num_previews:
            raise ValueError(f"num_scales is {num_scales}, expected 1 to {self.num_previews}")
        pyramid = data if isinstance(data, TokenPyramid) else self.encode(data)
        check_pyramid(pyramid, self.specs)
        needed = num_scales if self.config["latent"] == "all" else 1
        if len(pyramid) < needed:
            raise ValueError(f"the pyramid holds {len(pyramid)} levels, {num_scales} scales need {needed}")
        if self.config["latent"] == "all":
            tokens = self._embed_latents(pyramid.prefix(num_scales).concat())
        else:
            count = sum(side**2 for side in self._decoder_scales[:num_scales])
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
            losses["preview"] = self.config["preview_weight"] * self._preview_loss(tokens, data)
        features = {"kl": divergence}
        if self.alignment_projection is not None:
            features["alignment"] = self.alignment_projection(codes[:, -(self._scales[-1] ** 2) :])
        return TokenizerOutput(
            reconstruction=self._level_pixels(tokens, self.num_previews - 1),
            pyramid=TokenPyramid.split(codes, self.specs),
            losses=losses,
            features=features,
        )

    def _encode_features(self, images: Tensor) -> Tensor:
        size = self.config["image_size"]
        check_images(images, height=size, width=size)
        x = self.encoder(images)
        if self.feature_pool is not None:
            x = self.feature_pool(x)
        if self.encoder_tail is not None:
            x = self.encoder_tail(x)
        if self.config["latent"] == "finest":
            x = x[:, -(self._scales[-1] ** 2) :]
        return self.encoder_norm(x)

    def _pyramid_tokens(self, codes: Tensor) -> Tensor:
        return self._embed_latents(codes if self.latent_pool is None else self.latent_pool(codes))

    def _embed_latents(self, codes: Tensor) -> Tensor:
        x = self.from_latents(codes)
        if self.config["use_channel_shortcuts"]:
            x = x + codes.repeat_interleave(x.shape[-1] // codes.shape[-1], dim=-1)
        return x

    def _level_pixels(self, tokens: Tensor, level: int) -> Tensor:
        """Return the picture of one scale from the decoder's tokens, of which the scale's may be the last."""
        x = self.decoder_norm(_level(tokens, self._decoder_scales, level))
        is_finest = level == self.num_previews - 1
        own_head = len(self.preview_heads) > 0 and not is_finest
        x = self.preview_heads[level](x) if own_head else self.to_pixels(x)
        p, side = self.config["patch_size"], self._decoder_scales[level]
        image = rearrange(x, "b (h w) (c p q) -> b c (h p) (w q)", h=side, w=side, p=p, q=p)
        return image if own_head else self.final_conv(image)

    def _enlarge(self, image: Tensor) -> Tensor:
        size = self.config["image_size"]
        return F.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)

    def _preview_loss(self, tokens: Tensor, images: Tensor) -> Tensor:
        errors = []
        for level in range(self.num_previews - 1):
            preview = self._level_pixels(tokens, level).float()
            errors.append((preview - F.adaptive_avg_pool2d(images.float(), preview.shape[-1])).abs().mean())
        return torch.stack(errors).mean()

    def _init_weights(self) -> None:
        init_truncated_normal(self)
        for module in self.modules():
            if isinstance(module, PyramidPool):
                module.reset_parameters()
        # The last convolution starts as the identity, so that it can only smooth the seams of patches once that helps.
        nn.init.dirac_(self.final_conv.weight)


def _level(tokens: Tensor, sides: Sequence[int], level: int) -> Tensor:
    start = sum(side**2 for side in sides[:level])
    return tokens[:, start : start + sides[level] ** 2]


def _check_scales(scales: Sequence[int], image_size: int, patch_size: int) -> tuple[int, ...]:
    if patch_size < 1 or image_size % patch_size:
        raise ValueError(f"patch_size is {patch_size}, expected a divisor of image_size {image_size}")
    sides = tuple(scales)
    if not sides or sides[0] < 1 or list(sides) != sorted(set(sides)) or sides[-1] != image_size // patch_size:
        raise ValueError(f"scales is {sides}, expected increasing sides that end with {image_size // patch_size}")
    return sides


def _check_choices(*, placement: str, latent: str) -> None:
    if placement not in get_args(Placement):
        raise ValueError(f"placement is {placement!r}, expected one of {get_args(Placement)}")
    if latent not in get_args(LatentKind):
        raise ValueError(f"latent is {latent!r}, expected one of {get_args(LatentKind)}")
