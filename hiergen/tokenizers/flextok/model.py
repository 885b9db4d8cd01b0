"""FlexTok: an image as an ordered sequence of discrete tokens, any prefix of which a flow decodes to a plausible image.

Letters: `b` batch, `c h w` image, `z s t` map, `n` registers, `k` channels of a code.

    map      = factor * vae(image), or pixels                        (b z s t)
    latents  = encoder([patches of the map | registers])             (b n k)    a register sees the patches and earlier registers
    ids      = the latents rounded to a few values per channel       (b n)      no codebook; levels of 1, 1, 2, 4, ..., n/2 tokens
    velocity = decoder([patches of x_t | codes of a prefix], t)      (b z s t)  of x_t = t noise + (1 - t) map
    map      = integral of the velocity from noise, t = 1, to 0      (b z s t)

In training, prefixes of random length are decoded, and the loss is that of the flow. What a short prefix leaves open is made up by the
decoder, so an image of few tokens is sharp but another one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from hiergen.bottlenecks.gaussian import GaussianPosterior
from hiergen.bottlenecks.scalar import ScalarQuantizer
from hiergen.nn.nested_dropout import draw_nested_lengths
from hiergen.nn.running.precision import widen, without_autocast
from hiergen.nn.straight_path import VelocityFn, draw_times, integrate, interpolate, time_grid, velocity_losses
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.seeding import Rng, draw_normal, draw_uniform, make_rng
from hiergen.tokenizers.base import Pictures, Tokenizer, TokenizerOutput, check_images, check_pyramid, configured
from hiergen.tokenizers.flextok.config import FlexTokConfig, FlowDecoding
from hiergen.tokenizers.flextok.guidance import ProjectedGuidance
from hiergen.tokenizers.flextok.transformers import FlexTokDecoder, FlexTokEncoder


class FlexTok(Tokenizer):
    """A 1-D tokenizer of square images, discrete, whose decoder is a flow; on pixels, or on the latents of a frozen autoencoder.

    Options are the fields of `FlexTokConfig`, as keyword arguments.

    Raises:
        ValueError: If an option is unknown, or the sizes do not fit together.
        TypeError: If an entry of `autoencoder` is unknown to diffusers' `AutoencoderKL`.

    Source:
        FlexTok, arXiv:2502.13967.
    """

    vae: Any
    _supports_gradient_checkpointing = True
    _no_split_modules = ["RegisterBlock", "TwoStreamBlock"]  # type: ignore[assignment]  # noqa: RUF012
    _keep_in_fp32_modules = ["vae", "position_table"]  # type: ignore[assignment]  # noqa: RUF012

    @configured(FlexTokConfig)
    def __init__(self, layout: FlexTokConfig) -> None:
        super().__init__()
        self.layout = layout
        self.vae = None
        if layout.autoencoder is not None:
            self.vae = AutoencoderKL(**layout.autoencoder)
            self.vae.requires_grad_(False)
        self.encoder = FlexTokEncoder(layout)
        self.quantizer = ScalarQuantizer(layout.code_levels)
        self.decoder = FlexTokDecoder(layout)
        dim, vocab_size = len(layout.code_levels), self.quantizer.vocab_size
        self._specs = tuple(LevelSpec(size, dim=dim, vocab_size=vocab_size) for size in layout.level_sizes)

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        """All levels. They have no grid, because their tokens have no order in space."""
        return self._specs

    @torch.no_grad()
    def encode(self, data: Float[Tensor, "b c h w"] | Pictures, *, rng: torch.Generator | None = None) -> TokenPyramid:
        """Return the ids of images in [-1, 1], all levels.

        Pictures that are no tensor go through `image_processor`. With `sample_posterior` and a generator the map is drawn, (b, z, s, t)
        normal numbers; otherwise nothing is random.

        Raises:
            ValueError: If the images have another size or number of channels than the model, or values leave [-1, 1].
            TypeError: If they are not floating point.
        """
        cells = self._to_map(self._to_images(data), rng, is_drawn=rng is not None)
        return TokenPyramid.split(self.quantizer(self.encoder(cells)).ids, self.specs)

    @torch.no_grad()
    def decode(
        self,
        pyramid: TokenPyramid,
        settings: FlowDecoding | None = None,
        *,
        num_tokens: int | None = None,
        rng: Rng | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Return images, about [-1, 1] but not clamped, from all levels or a prefix of them.

        Random draws: (b, z, s, t) normal numbers, the noise that the flow begins with. Without a generator every sample begins with
        the same fixed noise, so that an image is a function of its tokens alone.

        Args:
            pyramid: Tokens of some or all levels.
            settings: How to integrate; None takes the model's own.
            num_tokens: Read only so many tokens, 1 to those of the pyramid; None reads all.
            rng: Source of the noise; a `SampleRng` draws for each sample by itself.

        Raises:
            ValueError: If the pyramid comes from another tokenizer, or `num_tokens` is out of range.
        """
        check_pyramid(pyramid, self.specs)
        given = pyramid.num_tokens
        if num_tokens is not None and not 1 <= num_tokens <= given:
            raise ValueError(f"num_tokens is {num_tokens}, expected 1 to {given}, the tokens of the pyramid")
        ids = F.pad(pyramid.concat(), (0, self.layout.num_registers - given))
        settings = settings or self.layout
        lengths = torch.full((len(ids),), num_tokens or given, device=ids.device)
        # Time runs from noise to the image downwards.
        times = [1 - time for time in time_grid(settings.num_steps)]
        velocity = self._velocity(self.quantizer.lookup(ids), lengths, settings)
        return self._from_map(integrate(velocity, self._noise(len(ids), rng), times))

    def forward(self, data: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None) -> TokenizerOutput:
        """Return reconstruction, ids and, in train mode, the loss "flow", and with `spread_weight` "spread".

        In train mode the reconstruction is the map that one velocity at the drawn time points to, decoded without a gradient: something
        to look at, sharp where the time is near 0. In eval mode it is `decode`'s, and there are no losses.

        Random draws in train mode, in this order: (b, z, s, t) normal numbers if `sample_posterior`, as many for the noise, b normal
        numbers for the times, b uniform ones for the lengths of prefixes, b uniform ones for the null condition.

        Raises:
            ValueError: If the images have another size or number of channels than the model.
            TypeError: If they are not floating point.
        """
        cells = self._to_map(data, rng, is_drawn=self.training)
        latents = self.encoder(cells)
        codes, ids, losses = self.quantizer(latents)
        pyramid = TokenPyramid.split(ids, self.specs)
        if not self.training:
            return TokenizerOutput(self.decode(pyramid), pyramid, losses)
        layout, batch, device = self.layout, len(data), data.device
        noise = draw_normal(cells.shape, rng=rng, device=device).to(cells.dtype)
        time = draw_times(batch, layout.time_distribution, device=device, rng=rng)
        lengths = draw_nested_lengths(batch, layout.num_registers, layout.length_distribution, rng=rng, device=device)
        is_null = draw_uniform((batch,), rng=rng, device=device) < layout.null_prob
        # This time is 1 for noise, so noise takes the place of the data.
        mixed, target = interpolate(noise.flatten(2), cells.flatten(2), time)
        velocity = self.decoder(mixed.view_as(cells), time, codes, lengths, is_null).flatten(2)
        losses["flow"], _ = velocity_losses(velocity, target)
        if layout.spread_weight and batch > 1:
            losses["spread"] = layout.spread_weight * _spread_loss(widen(latents).flatten(1))
        with torch.no_grad():
            aim = mixed - time.to(mixed.dtype)[:, None, None] * velocity.to(mixed.dtype)
            return TokenizerOutput(self._from_map(aim.view_as(cells)), pyramid, losses)

    def _velocity(self, codes: Tensor, lengths: Tensor, settings: FlowDecoding) -> VelocityFn:
        """Return the guided velocity as a function of state and time."""
        batch, scale, device = len(codes), settings.guidance_scale, codes.device
        is_null = torch.zeros(batch, dtype=torch.bool, device=device)
        if scale != 1:
            codes, lengths = torch.cat((codes, codes)), torch.cat((lengths, lengths))
            is_null = torch.cat((is_null, ~is_null))
        project = ProjectedGuidance()

        def velocity(state: Tensor, time: float) -> Tensor:
            moments = torch.full((len(codes),), time, device=device, dtype=state.dtype)
            x = state if scale == 1 else torch.cat((state, state))
            slope = self.decoder(x, moments, codes, lengths, is_null).to(state.dtype)
            if scale == 1:
                return slope
            conditional, null = slope.chunk(2)
            if settings.guidance == "projected":
                return project(conditional, null, scale)
            return null + scale * (conditional - null)

        return velocity

    def _noise(self, batch: int, rng: Rng | None) -> Float[Tensor, "b z s t"]:
        side = self.layout.image_size // self.layout.stride
        shape = (self.layout.map_channels, side, side)
        if rng is None:
            noise = draw_normal(shape, rng=make_rng("flextok noise"), device=self.device).expand(batch, *shape)
        else:
            noise = draw_normal((batch, *shape), rng=rng, device=self.device)
        return noise.double() if self.dtype == torch.float64 else noise

    @torch.no_grad()
    def _to_map(self, images: Tensor, rng: torch.Generator | None, *, is_drawn: bool) -> Float[Tensor, "b z s t"]:
        """Return the map of images, in float32 at least; it is drawn only with `sample_posterior`."""
        layout = self.layout
        check_images(images, height=layout.image_size, width=layout.image_size, channels=layout.in_channels)
        cells = widen(images)
        if self.vae is not None:
            with without_autocast(images.device):
                moments = self.vae.encode(images.to(self.vae.dtype)).latent_dist.parameters
            posterior = GaussianPosterior(*moments.chunk(2, dim=1))
            cells = posterior.sample(rng) if is_drawn and layout.sample_posterior else posterior.mean
        return cells * layout.scaling_factor

    def _from_map(self, cells: Float[Tensor, "b z s t"]) -> Float[Tensor, "b c h w"]:
        cells = cells / self.layout.scaling_factor
        if self.vae is None:
            return cells
        with without_autocast(cells.device):
            return self.vae.decode(cells.to(self.vae.dtype)).sample


def _spread_loss(latents: Float[Tensor, "b m"]) -> Float[Tensor, ""]:
    """Return by how much numbers vary less than by 1 over a batch, and how much they vary together: VICReg's two terms, each a mean."""
    centered = latents - latents.mean(dim=0)
    deviations = (centered.square().mean(dim=0) + 1e-4).sqrt()
    correlations = (centered / deviations).T @ (centered / deviations) / len(latents)
    together = correlations.square().mean() - correlations.diagonal().square().mean() / len(correlations)
    return F.relu(1 - deviations).mean() + together
