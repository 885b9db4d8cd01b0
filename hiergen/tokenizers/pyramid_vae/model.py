"""MAR-3D's pyramid VAE: a surface point cloud -> unordered continuous tokens -> an occupancy field.

Its levels are *alternative resolutions* of one shape (256 and 1024 tokens from the same weights), so `decode` reads the finest
level that is present. With one point resolution and one level it is the VAE of Michelangelo, CraftsMan and the MAR-3D release.

Letters: `b` batch, `p` points, `c` channels of a point, `n` tokens of a level, `d` channels of a token, `w` width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.bottlenecks.gaussian import GaussianPosterior
from hiergen.nn.blocks.perceiver import CrossBlock, KeyValue, SelfStack, fourier_dim, fourier_embedding, init_perceiver
from hiergen.nn.farthest_points import farthest_points
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.tokenizers.base import Tokenizer, TokenizerOutput


class FieldDecoder(nn.Module):
    """Tokens -> field: self-attention over the tokens, then one cross-attention block from each query point."""

    def __init__(
        self, *, token_dim: int, width: int, num_heads: int, depth: int, qkv_bias: bool, embed_dim: int
    ) -> None:
        super().__init__()
        self.from_tokens = nn.Linear(token_dim, width)
        self.stack = SelfStack(depth, width, num_heads, qkv_bias=qkv_bias)
        self.query_projection = nn.Linear(embed_dim, width)
        self.cross_block = CrossBlock(width, num_heads, qkv_bias=qkv_bias)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, 1)

    def read_tokens(self, tokens: Float[Tensor, "b n d"]) -> KeyValue:
        """Return the keys and values that every query of these shapes attends to."""
        return self.cross_block.project_data(self.stack(self.from_tokens(tokens.to(self.from_tokens.weight.dtype))))

    def forward(self, embedding: Float[Tensor, "b p e"], key_value: KeyValue) -> Float[Tensor, "b p"]:
        x = self.query_projection(embedding.to(self.query_projection.weight.dtype))
        return self.output(self.norm(self.cross_block(x, key_value))).squeeze(-1)


class ShapeField:
    """The occupancy of a batch of shapes as a function of the point; what `PyramidVAE.decode` returns.

    The tokens' part of the decoder has run: a query costs one cross-attention block. Queries do not see each other. Gradients
    reach the tokens, the weights and the points.
    """

    def __init__(self, decoder: FieldDecoder, embed: Callable[[Tensor], Tensor], key_value: KeyValue) -> None:
        self._decoder = decoder
        self._embed = embed
        self._key_value = key_value

    @property
    def batch_size(self) -> int:
        return self._key_value[0].shape[0]

    @property
    def device(self) -> torch.device:
        return self._key_value[0].device

    def __getitem__(self, samples: slice) -> ShapeField:
        """Return the field of some shapes of the batch."""
        key, value = self._key_value
        return ShapeField(self._decoder, self._embed, (key[samples], value[samples]))

    def query(self, points: Float[Tensor, "b p 3"], *, chunk_size: int | None = None) -> Float[Tensor, "b p"]:
        """Return one logit a point, positive inside.

        Args:
            points: Coordinates; the model is trained in [-1.05, 1.05]^3.
            chunk_size: Points to evaluate at once (bounds the memory, not the result); None for all.

        Raises:
            ValueError: If there are points for another number of shapes, or `chunk_size` is not positive.
        """
        if points.shape[0] != self.batch_size:
            raise ValueError(f"points are for {points.shape[0]} shapes, the field holds {self.batch_size}")
        if chunk_size is None:
            return self._decoder(self._embed(points), self._key_value)
        if chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}, expected at least 1")
        parts = [self._decoder(self._embed(part), self._key_value) for part in points.split(chunk_size, dim=1)]
        return torch.cat(parts, dim=1)

    def shape(self, index: int) -> Callable[[Tensor], Tensor]:
        """Return the field of one shape as a function `(p, 3) -> (p,)`, e.g. for `extract_mesh`."""
        if not 0 <= index < self.batch_size:
            raise ValueError(f"index is {index}, expected 0 to {self.batch_size - 1}")
        field = self[index : index + 1]
        return lambda points: field.query(points[None])[0]


@dataclasses.dataclass(frozen=True)
class _CloudMemory:
    """What the encoder's queries read: keys and values of each point resolution, and the projected farthest points."""

    key_values: list[KeyValue]
    farthest: Tensor | None


class PyramidVAE(Tokenizer):
    """Variational autoencoder of shapes with several point resolutions and several token resolutions.

    Encoder: each resolution of the cloud is embedded and read by its own cross-attention block, all with the same queries; the
    results are summed, self-attention follows, then mean and log-variance of every token. Decoder: `FieldDecoder`.

    Args:
        num_tokens: Tokens of each level, increasing. All levels share every weight but their queries.
        token_dim: Channels of a token.
        width: Channels inside.
        num_heads: Attention heads.
        encoder_depth: Self blocks of the encoder.
        decoder_depth: Self blocks of the decoder.
        num_frequencies: Of the Fourier embedding, 1, 2, 4, ...
        include_pi: Multiply the frequencies by pi.
        point_features: Channels of a point beyond its coordinates; 3 are normals.
        embed_point_features: Give the features a Fourier embedding too.
        point_counts: Points of each resolution, decreasing, by farthest-point sampling; None reads the whole cloud at one
            resolution (the released encoder).
        queries: "learned", or "farthest": the embeddings of as many farthest points as the level has tokens.
        share_input_projection: One input projection for all point resolutions, or one each.
        residual_per_level: Add the queries once for each point resolution instead of once in all. Equal for one resolution.
        qkv_bias: Biases in the projections to queries, keys and values.
        final_encoder_norm: A last norm in the encoder.
        kl_weight: Weight of the KL term, which is a *mean* over tokens and channels.
        init_scale: The blocks' weights start with a deviation of `init_scale / sqrt(width)`.
        init_log_variance: Log-variance of a token at the start; None leaves it near 0, where noise hides the means at first.

    Raises:
        ValueError: If the sizes do not fit together.

    Source:
        MAR-3D, arXiv:2503.20519, section 3.1; Michelangelo, arXiv:2306.17115. The paper leaves open how the levels' residuals
        add up, whether input projections are shared, and whether one model serves both token resolutions: here the queries
        count once, the projection is shared, one model serves both, and the first two are switches.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["SelfBlock"]  # type: ignore[assignment]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        *,
        num_tokens: Sequence[int] = (256, 1024),
        token_dim: int = 64,
        width: int = 768,
        num_heads: int = 12,
        encoder_depth: int = 8,
        decoder_depth: int = 16,
        num_frequencies: int = 8,
        include_pi: bool = False,
        point_features: int = 3,
        embed_point_features: bool = False,
        point_counts: Sequence[int] | None = (16384, 4096, 1024),
        queries: str = "learned",
        share_input_projection: bool = True,
        residual_per_level: bool = False,
        qkv_bias: bool = True,
        final_encoder_norm: bool = True,
        kl_weight: float = 1e-3,
        init_scale: float = 0.25,
        init_log_variance: float | None = None,
    ) -> None:
        super().__init__()
        _check_config(self.config)
        resolutions = 1 if point_counts is None else len(point_counts)
        embed_dim = fourier_dim(num_frequencies)
        input_dim = embed_dim + (embed_dim if embed_point_features else point_features)
        self.query_banks = nn.ParameterList()
        if queries == "learned":
            self.query_banks.extend(nn.Parameter(0.02 * torch.randn(count, width)) for count in num_tokens)
        projections = 1 if share_input_projection else resolutions
        self.input_projections = nn.ModuleList(nn.Linear(input_dim, width) for _ in range(projections))
        self.cross_blocks = nn.ModuleList(CrossBlock(width, num_heads, qkv_bias=qkv_bias) for _ in range(resolutions))
        self.encoder_stack = SelfStack(encoder_depth, width, num_heads, qkv_bias=qkv_bias)
        self.encoder_norm = nn.LayerNorm(width) if final_encoder_norm else nn.Identity()
        self.to_moments = nn.Linear(width, 2 * token_dim)
        self.decoder = FieldDecoder(
            token_dim=token_dim,
            width=width,
            num_heads=num_heads,
            depth=decoder_depth,
            qkv_bias=qkv_bias,
            embed_dim=embed_dim,
        )
        init_perceiver(self, std=init_scale * width**-0.5)
        if init_log_variance is not None:
            nn.init.constant_(self.to_moments.bias[token_dim:], init_log_variance)

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        return tuple(LevelSpec(count, None, dim=self.config["token_dim"]) for count in self.config["num_tokens"])

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
        (chosen,) = self._check_levels([level % len(self.config["num_tokens"])])
        return self._posterior(self._read_cloud(data, is_ordered), chosen, data.shape[0])

    # The data of a shape are a function of the point, not a tensor.
    def decode(self, pyramid: TokenPyramid) -> ShapeField:  # type: ignore[override]
        """Return the occupancy field of the finest level present.

        Any choice of this model's levels is accepted, the finest alone too, because each level is a whole shape.

        Raises:
            ValueError: If a level is none of this model's.
        """
        for spec in pyramid.specs:
            if spec not in self.specs:
                raise ValueError(
                    f"the pyramid holds the level {spec}, this model's are {self.specs}: it comes from another tokenizer"
                )
        return self._field(pyramid.levels[-1])

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
            logits[f"logits_{level}"] = self._field(tokens[-1]).query(points)
        return TokenizerOutput(
            reconstruction=logits[f"logits_{chosen[-1]}"],
            pyramid=TokenPyramid(tuple(tokens), tuple(self.specs[level] for level in chosen)),
            losses={"kl": self.config["kl_weight"] * torch.stack(divergences).mean()},
            features=logits,
        )

    def _check_levels(self, levels: Sequence[int] | None) -> list[int]:
        known = range(len(self.config["num_tokens"]))
        chosen = list(known) if levels is None else list(levels)
        if not chosen or chosen != sorted(set(chosen)) or not set(chosen) <= set(known):
            raise ValueError(f"levels is {chosen}, expected an increasing choice of {list(known)}")
        return chosen

    def _embed(self, points: Tensor) -> Tensor:
        return fourier_embedding(points, self.config["num_frequencies"], include_pi=self.config["include_pi"])

    def _field(self, tokens: Tensor) -> ShapeField:
        return ShapeField(self.decoder, self._embed, self.decoder.read_tokens(tokens))

    def _read_cloud(self, data: Tensor, is_ordered: bool) -> _CloudMemory:
        """Return keys and values of every point resolution; they serve all levels of tokens."""
        config = self.config
        num_points = data.shape[1] if data.ndim == 3 else 0
        counts = [num_points] if config["point_counts"] is None else list(config["point_counts"])
        num_queries = max(config["num_tokens"]) if config["queries"] == "farthest" else 0
        _check_clouds(data, channels=3 + config["point_features"], at_least=max(*counts, num_queries, 1))

        features = data[..., 3:]
        embedding = torch.cat(
            (self._embed(data[..., :3]), self._embed(features) if config["embed_point_features"] else features), -1
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
            block = cast("CrossBlock", self.cross_blocks[index])
            key_values.append(block.project_data(self._input_projection(index)(cloud)))
        return _CloudMemory(key_values, self._input_projection(0)(prefix[:, :num_queries]) if num_queries else None)

    def _input_projection(self, resolution: int) -> nn.Module:
        return self.input_projections[0 if self.config["share_input_projection"] else resolution]

    def _posterior(self, memory: _CloudMemory, level: int, batch: int) -> GaussianPosterior:
        if memory.farthest is None:
            queries = self.query_banks[level].expand(batch, -1, -1)
        else:
            queries = memory.farthest[:, : self.config["num_tokens"][level]]
        first, *others = cast("list[CrossBlock]", list(self.cross_blocks))
        x = first(queries, memory.key_values[0])
        for block, key_value in zip(others, memory.key_values[1:], strict=True):
            x = x + (
                block(queries, key_value) if self.config["residual_per_level"] else block.change(queries, key_value)
            )
        mean, log_variance = self.to_moments(self.encoder_norm(self.encoder_stack(x))).chunk(2, dim=-1)
        return GaussianPosterior(mean, log_variance)


def _check_clouds(data: Tensor, *, channels: int, at_least: int) -> None:
    if data.ndim != 3 or data.shape[2] != channels or data.shape[1] < at_least:
        raise ValueError(
            f"clouds have shape {tuple(data.shape)}, expected (b, p, {channels}) with p at least {at_least}"
        )
    if not data.is_floating_point():
        raise TypeError(f"clouds have dtype {data.dtype}, expected floating point with coordinates in [-1, 1]")


def _check_config(config: Mapping[str, Any]) -> None:
    for name in ("token_dim", "width", "num_heads"):
        if config[name] < 1:
            raise ValueError(f"{name} is {config[name]}, expected at least 1")
    for name in ("encoder_depth", "decoder_depth", "num_frequencies", "point_features"):
        if config[name] < 0:
            raise ValueError(f"{name} is {config[name]}, expected at least 0")
    if config["width"] % config["num_heads"]:
        raise ValueError(f"width is {config['width']}, expected a multiple of num_heads, {config['num_heads']}")
    tokens = list(config["num_tokens"])
    if not tokens or min(tokens) < 1 or tokens != sorted(set(tokens)):
        raise ValueError(f"num_tokens is {tokens}, expected increasing numbers of tokens, coarse to fine")
    points = config["point_counts"]
    if points is not None and (not points or min(points) < 1 or list(points) != sorted(set(points), reverse=True)):
        raise ValueError(f"point_counts is {list(points)}, expected decreasing numbers of points, or None")
    if config["queries"] not in ("learned", "farthest"):
        raise ValueError(f"queries is {config['queries']!r}, expected 'learned' or 'farthest'")
    if config["embed_point_features"] and config["point_features"] != 3:
        raise ValueError(f"point_features is {config['point_features']}, embed_point_features expects 3 (normals)")
