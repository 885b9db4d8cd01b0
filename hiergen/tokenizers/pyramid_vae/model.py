"""MAR-3D's pyramid VAE: a surface point cloud -> unordered continuous tokens -> an occupancy field.

Letters: `b` batch, `p` points, `c` channels of a point, `n` tokens of a level, `d` channels of a token, `w` width.

    cloud_r  = the first count_r points in farthest-point order            (b p_r c)    one per point resolution r
    x        = queries + sum over r of attend(queries, embed(cloud_r))     (b n w)      one cross-attention block per resolution
    tokens   = sample(to_moments(self-attention(x)))                       (b n d)      Gaussian
    field    = point -> logit: attend(embed(point), self-attention(tokens))             `ShapeField`

Levels are *alternative resolutions* of one shape (256 and 1024 tokens from the same weights but their queries), so `decode` reads the
finest level that is present. With one point resolution and one level it is the VAE of Michelangelo, CraftsMan and the MAR-3D release.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.bottlenecks.gaussian import GaussianPosterior
from hiergen.nn.blocks.anchors import anchor_grid, anchor_side, point_side
from hiergen.nn.blocks.perceiver import CrossBlock, KeyValue, SelfStack, fourier_embedding, init_perceiver
from hiergen.nn.depth.plan import part_plan
from hiergen.nn.farthest_points import farthest_points
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.tokenizers.base import Tokenizer, TokenizerOutput, configured
from hiergen.tokenizers.pyramid_vae.config import PyramidVAEConfig
from hiergen.tokenizers.pyramid_vae.field import Anchors, FieldDecoder, ShapeField


@dataclasses.dataclass(frozen=True)
class _CloudMemory:
    """What the encoder's queries read: keys and values of each point resolution, and the projected farthest points."""

    key_values: list[KeyValue]
    farthest: Tensor | None


class PyramidVAE(Tokenizer[ShapeField]):
    """Variational autoencoder of shapes with several point resolutions and several token resolutions.

    Options are the fields of `PyramidVAEConfig`, as keyword arguments.

    Raises:
        ValueError: If an option is unknown, or the sizes do not fit together.

    Source:
        MAR-3D, arXiv:2503.20519, section 3.1; Michelangelo, arXiv:2306.17115. The paper leaves open how the levels' residuals
        add up, whether input projections are shared, and whether one model serves both token resolutions: here the queries
        count once, the projection is shared, one model serves both, and the first two are switches.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["SelfBlock"]  # type: ignore[assignment]  # noqa: RUF012
    _decoding_modules = ("decoder", "decoder.stack")

    @configured(PyramidVAEConfig)
    def __init__(self, layout: PyramidVAEConfig) -> None:
        super().__init__()
        self.layout = layout
        width, heads, bias, resolutions = layout.width, layout.num_heads, layout.qkv_bias, layout.num_resolutions
        self.query_banks = nn.ParameterList()
        if layout.queries == "learned":
            self.query_banks.extend(nn.Parameter(0.02 * torch.randn(count, width)) for count in layout.num_tokens)
        projections = 1 if layout.share_input_projection else resolutions
        self.input_projections = nn.ModuleList(nn.Linear(layout.input_dim, width) for _ in range(projections))
        self.cross_blocks = nn.ModuleList(CrossBlock(width, heads, qkv_bias=bias) for _ in range(resolutions))
        self.encoder_stack = SelfStack(
            layout.encoder_depth, width, heads, qkv_bias=bias, plan=part_plan(layout.plan, "encoder", "decoder")
        )
        self.encoder_norm = nn.LayerNorm(width) if layout.final_encoder_norm else nn.Identity()
        self.to_moments = nn.Linear(width, 2 * layout.token_dim)
        self.decoder = FieldDecoder(layout)
        init_perceiver(self, std=layout.init_scale * width**-0.5)
        if layout.init_log_variance is not None:
            nn.init.constant_(self.to_moments.bias[layout.token_dim :], layout.init_log_variance)

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        return tuple(LevelSpec(count, None, dim=self.layout.token_dim) for count in self.layout.num_tokens)

    def encode(
        self,
        data: Float[Tensor, "b p c"],
        *,
        rng: torch.Generator | None = None,
        levels: Sequence[int] | None = None,
        is_ordered: bool = False,
    ) -> TokenPyramid:
        """Return the tokens of point clouds.

        Args:
            data: Clouds, coordinates in [-1, 1] first, then the features (unit normals).
            rng: Draws the tokens from their posterior; None takes its mean.
            levels: Which levels to make, in increasing order; None for all.
            is_ordered: The clouds begin with their farthest points in order (`farthest_points`), as many as the coarser
                resolutions need: each is then a prefix, without a search. The result is the same.

        Raises:
            ValueError: If the clouds do not fit the model, or `levels` is no increasing choice of its levels.
            TypeError: If the clouds are not floating point.
        """
        chosen = self._check_levels(levels)
        memory = self._read_cloud(data, is_ordered)
        tokens = []
        for level in chosen:
            posterior = self._posterior(memory, level, data.shape[0])
            tokens.append(posterior.mean if rng is None else posterior.sample(rng))
        return TokenPyramid(tuple(tokens), tuple(self.specs[level] for level in chosen))

    def posterior(
        self, data: Float[Tensor, "b p c"], level: int = -1, *, is_ordered: bool = False
    ) -> GaussianPosterior:
        """Return the distribution of one level's tokens, `(b, n, d)`; arguments as in `encode`, -1 is the finest level."""
        (chosen,) = self._check_levels([level % len(self.layout.num_tokens)])
        return self._posterior(self._read_cloud(data, is_ordered), chosen, data.shape[0])

    def decode(self, pyramid: TokenPyramid) -> ShapeField:
        """Return the occupancy field of the finest level present.

        Any choice of this model's levels is accepted, the finest alone too, because each level is a whole shape.

        Raises:
            ValueError: If a level is not one of this model's.
        """
        for spec in pyramid.specs:
            if spec not in self.specs:
                raise ValueError(
                    f"the pyramid holds the level {spec}, this model's are {self.specs}: it comes from another tokenizer"
                )
        return self._field(pyramid.levels[-1], self.specs.index(pyramid.specs[-1]))

    def forward(
        self,
        data: Float[Tensor, "b p c"],
        *,
        rng: torch.Generator | None = None,
        points: Float[Tensor, "b q 3"] | None = None,
        levels: Sequence[int] | None = None,
        is_ordered: bool = False,
    ) -> TokenizerOutput:
        """Return the logits at `points` decoded from each level, with the KL term.

        In train mode the tokens are drawn from their posterior. `features["logits_<level>"]` holds the logits `(b, q)` of
        each level, `reconstruction` those of the finest. The paper's recipe of one level a step, drawn at random, is
        `levels=[k]`.

        Args:
            data: Clouds, as for `encode`.
            rng: Draws the tokens in train mode; None takes PyTorch's global generator.
            points: Where to evaluate the field; None evaluates it at the points of the clouds.
            levels: As for `encode`.
            is_ordered: As for `encode`.
        """
        chosen = self._check_levels(levels)
        memory = self._read_cloud(data, is_ordered)
        points = data[..., :3] if points is None else points
        tokens, divergences, logits = [], [], {}
        for level in chosen:
            posterior = self._posterior(memory, level, data.shape[0])
            tokens.append(posterior.sample(rng) if self.training else posterior.mean)
            divergences.append(posterior.kl() / posterior.mean[0].numel())
            logits[f"logits_{level}"] = self._field(tokens[-1], level).query(points)
        return TokenizerOutput(
            reconstruction=logits[f"logits_{chosen[-1]}"],
            pyramid=TokenPyramid(tuple(tokens), tuple(self.specs[level] for level in chosen)),
            losses={"kl": self.layout.kl_weight * torch.stack(divergences).mean()},
            features=logits,
        )

    def _check_levels(self, levels: Sequence[int] | None) -> list[int]:
        known = range(len(self.layout.num_tokens))
        chosen = list(known) if levels is None else list(levels)
        if not chosen or chosen != sorted(set(chosen)) or not set(chosen) <= set(known):
            raise ValueError(f"levels is {chosen}, expected an increasing choice of {list(known)}")
        return chosen

    def _embed(self, points: Tensor) -> Tensor:
        return fourier_embedding(points, self.layout.num_frequencies, include_pi=self.layout.include_pi)

    def _anchors(self, level: int) -> Anchors | None:
        reach = self.layout.anchor_reach
        if reach is None:
            return None
        anchors = anchor_grid(self.layout.num_tokens[level]).to(self.device)
        return Anchors(self._embed(anchors), anchor_side(anchors, reach))

    def _field(self, tokens: Tensor, level: int) -> ShapeField:
        key_value = self.decoder.read_tokens(tokens, self._anchors(level))
        return ShapeField(self.decoder, self._embed, key_value, self.layout.extent)

    def _read_cloud(self, data: Tensor, is_ordered: bool) -> _CloudMemory:
        """Return keys and values of every point resolution; they serve all levels of tokens."""
        layout = self.layout
        num_points = data.shape[1] if data.ndim == 3 else 0
        counts = [num_points] if layout.point_counts is None else list(layout.point_counts)
        num_queries = max(layout.num_tokens) if layout.queries == "farthest" else 0
        _check_clouds(data, channels=3 + layout.point_features, at_least=max(*counts, num_queries, 1))

        features = data[..., 3:]
        embedding = torch.cat(
            (self._embed(data[..., :3]), self._embed(features) if layout.embed_point_features else features), -1
        )
        embedding = embedding.to(self.to_moments.weight.dtype)
        # A resolution of all points needs no order among them.
        ordered = num_points if is_ordered else max([c for c in counts if c < num_points] + [num_queries])
        order = None if is_ordered or not ordered else farthest_points(data[..., :3], ordered)
        prefix = (
            embedding if order is None else embedding.gather(1, order[..., None].expand(-1, -1, embedding.shape[-1]))
        )

        key_values = []
        for index, count in enumerate(counts):
            cloud = embedding if count == num_points else prefix[:, :count]
            # An embedding begins with the coordinates.
            places = None if layout.anchor_reach is None else point_side(cloud[..., :3])
            block = cast("CrossBlock", self.cross_blocks[index])
            key_values.append(block.project_data(self._input_projection(index)(cloud), places))
        return _CloudMemory(key_values, self._input_projection(0)(prefix[:, :num_queries]) if num_queries else None)

    def _input_projection(self, resolution: int) -> nn.Module:
        return self.input_projections[0 if self.layout.share_input_projection else resolution]

    def _posterior(self, memory: _CloudMemory, level: int, batch: int) -> GaussianPosterior:
        if memory.farthest is None:
            queries = self.query_banks[level].expand(batch, -1, -1)
        else:
            queries = memory.farthest[:, : self.layout.num_tokens[level]]
        anchors, places = self._anchors(level), None
        if anchors is not None:
            embedding = nn.functional.pad(anchors.embedding, (0, self.layout.input_dim - self.layout.embed_dim))
            queries, places = queries + self._input_projection(0)(embedding.to(queries.dtype)), anchors.places
        first, *others = cast("list[CrossBlock]", list(self.cross_blocks))
        x = first(queries, memory.key_values[0], places)
        for block, key_value in zip(others, memory.key_values[1:], strict=True):
            read = block.forward if self.layout.residual_per_level else block.change
            x = x + read(queries, key_value, places)
        mean, log_variance = self.to_moments(self.encoder_norm(self.encoder_stack(x))).chunk(2, dim=-1)
        return GaussianPosterior(mean, log_variance)


def _check_clouds(data: Tensor, *, channels: int, at_least: int) -> None:
    if data.ndim != 3 or data.shape[2] != channels or data.shape[1] < at_least:
        raise ValueError(
            f"clouds have shape {tuple(data.shape)}, expected (b, p, {channels}) with p at least {at_least}"
        )
    if not data.is_floating_point():
        raise TypeError(f"clouds have dtype {data.dtype}, expected floating point with coordinates in [-1, 1]")
