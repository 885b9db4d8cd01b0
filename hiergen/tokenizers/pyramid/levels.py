"""Levels of codes that are residuals of a pyramid: each quantizes what the coarser ones leave over of its own stage's features.

    s_0 = 0;  for every level k, coarse to fine:
        e_k = p_k - up(s_(k-1))            p_k: what stage k wants, in one space of codes for all levels
        q_k = quantize(e_k)
        s_k = up(s_(k-1)) + q_k
    up(s) = n + conv3x3(n), n the nearest neighbors of s on the next grid      the convolution is optional, and shared by all levels

A level that is missing counts as q_k = 0, so that every prefix is a map on the finest grid.

Letters: `b` batch, `d` channels of a code, `h w` sides of a level, `n` its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from hiergen.bottlenecks.base import Bottleneck
from hiergen.bottlenecks.gaussian import GaussianBottleneck
from hiergen.bottlenecks.scalar import ScalarQuantizer
from hiergen.bottlenecks.vector import VectorQuantizer
from hiergen.nn.running.precision import KeepsFloat32, widen, without_autocast
from hiergen.tokenizers.pyramid.config import PyramidConfig

#: Log-variance of continuous tokens at the start.
_FIRST_LOG_VARIANCE = -4.0


class LevelsOutput(NamedTuple):
    """What the levels make of the stages' maps.

    Attributes:
        tokens: One tensor per level: ids `(b, n)`, or continuous tokens `(b, n, d)`.
        sums: s_k of every level, `(b, d, h, w)`, with gradients to the maps of all levels up to it.
        residuals: e_k of every level, `(b, n, d)`: what its codes were chosen for.
        losses: Weighted scalars by name.
    """

    tokens: tuple[Tensor, ...]
    sums: tuple[Tensor, ...]
    residuals: tuple[Tensor, ...]
    losses: dict[str, Tensor]


class ResidualLevels(KeepsFloat32):
    """The recursion over levels with its quantizer, in float32 at least.

    Args:
        config: Options of the tokenizer.
        grids: Rows and columns of every level, coarse to fine.
    """

    def __init__(self, config: PyramidConfig, grids: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.grids = tuple(grids)
        self.is_discrete = config.vocab_size is not None
        self.commitment_weight, self.kl_weight = config.commitment_weight, config.kl_weight
        self.quantizer: Bottleneck | None = None
        self.gains: nn.Parameter | None = None
        if config.vocab_size is None:
            self.bottlenecks = nn.ModuleList(
                GaussianBottleneck(config.code_dim, config.code_dim, kl_weight=config.kl_weight) for _ in self.grids
            )
        elif config.quantizer == "fsq":
            self.quantizer = ScalarQuantizer(config.fsq_levels)
        else:
            self.quantizer = VectorQuantizer(
                config.vocab_size,
                config.code_dim,
                commitment_weight=config.commitment_weight,
                entropy_weight=config.entropy_weight,
                normalize=config.quantizer == "gain",
            )
        if self.is_discrete and config.quantizer != "plain":
            # Logarithms: a sum of unit vectors could not shrink with depth as residuals do.
            self.gains = nn.Parameter(torch.zeros(len(self.grids)))
        self.filter = nn.Conv2d(config.code_dim, config.code_dim, 3, padding=1) if config.refine else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Let `up` begin as nearest neighbors, and continuous tokens with little noise, which would hide their means at first."""
        if self.filter is not None:
            nn.init.zeros_(self.filter.weight)
            assert self.filter.bias is not None
            nn.init.zeros_(self.filter.bias)
        if self.quantizer is None:
            for bottleneck in self.bottlenecks:
                moments = cast(GaussianBottleneck, bottleneck).to_moments
                nn.init.constant_(moments.bias[moments.out_features // 2 :], _FIRST_LOG_VARIANCE)

    def forward(
        self,
        targets: Sequence[Float[Tensor, "b d _ _"]],
        *,
        samples: bool = False,
        rng: torch.Generator | None = None,
    ) -> LevelsOutput:
        """Return tokens, sums, residuals and losses; a quantizer's losses are means over the levels, the divergence is a sum.

        Args:
            targets: One map per level, coarse to fine; a prefix of the levels will do.
            samples: Draw continuous tokens, with `rng`; False takes their means.
            rng: Source of the draws; None takes PyTorch's.
        """
        tokens, sums, residuals, losses = [], [], [], dict[str, list[Tensor]]()
        with without_autocast(targets[0].device):
            total: Tensor | None = None
            for level, target in enumerate(targets):
                before = None if total is None else self.up(total, level)
                # Without gradient: what a coarser level says is not changed for the sake of a finer one's residual.
                residual = widen(target) if before is None else widen(target) - before.detach()
                sequence = rearrange(residual, "b d h w -> b (h w) d")
                found, codes, terms = self._quantize(sequence, level, samples, rng)
                grown = rearrange(codes, "b (h w) d -> b d h w", h=target.shape[2])
                total = grown if before is None else before + grown
                tokens.append(found)
                sums.append(total)
                residuals.append(sequence)
                for name, term in terms.items():
                    losses.setdefault(name, []).append(term)
        joined = {
            name: torch.stack(terms).mean() if self.is_discrete else torch.stack(terms).sum()
            for name, terms in losses.items()
        }
        return LevelsOutput(tuple(tokens), tuple(sums), tuple(residuals), joined)

    def _quantize(
        self, residual: Float[Tensor, "b n d"], level: int, samples: bool, rng: torch.Generator | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return a level's tokens, its codes with gradients to the residual, and its losses."""
        if self.quantizer is None:
            posterior = self.bottlenecks[level].posterior(residual)  # type: ignore[operator]  # a GaussianBottleneck
            codes = posterior.sample(rng) if samples else posterior.mean
            return codes, codes, {"kl": self.kl_weight * posterior.kl()}
        if self.gains is None:
            codes, ids, losses = self.quantizer(residual)
        elif isinstance(self.quantizer, ScalarQuantizer):
            gain = self.gains[level].exp()
            codes, ids, losses = self.quantizer(residual / gain)
            codes = gain * codes
        else:
            gain = self.gains[level].exp()
            _, ids, losses = self.quantizer(residual)
            scaled = gain * self.quantizer.lookup(ids).detach()
            losses["gain"] = (scaled - residual.detach()).square().mean()
            losses["gain"] = losses["gain"] + self.commitment_weight * (scaled.detach() - residual).square().mean()
            # Straight through to the residual, not to its direction; the factor learns from the image too.
            codes = scaled + (residual - residual.detach())
        assert ids is not None
        return ids, codes, losses

    def lookup(self, tokens: Int[Tensor, "b n"] | Float[Tensor, "b n d"], level: int) -> Float[Tensor, "b n d"]:
        """Return the codes of a level's tokens; of ids, or of mixtures of codes in their place."""
        if self.quantizer is None:
            return tokens
        codes = tokens if tokens.is_floating_point() else self.quantizer.lookup(tokens)
        return codes if self.gains is None else self.gains[level].exp() * codes

    def combine(self, tokens: Sequence[Tensor]) -> Float[Tensor, "b d h w"]:
        """Return the map on the finest grid that the tokens of the first levels make."""
        with without_autocast(tokens[0].device):
            total: Tensor | None = None
            for level, part in enumerate(tokens):
                codes = widen(self.lookup(part, level))
                grown = rearrange(codes, "b (h w) d -> b d h w", h=self.grids[level][0])
                total = grown if total is None else self.up(total, level) + grown
            assert total is not None
            return self.finish(total, len(tokens))

    def finish(self, total: Float[Tensor, "b d _ _"], num_levels: int) -> Float[Tensor, "b d h w"]:
        """Return the sum after some levels on the finest grid."""
        with without_autocast(total.device):
            for level in range(num_levels, len(self.grids)):
                total = self.up(total, level)
            return total

    def up(self, total: Float[Tensor, "b d _ _"], level: int) -> Float[Tensor, "b d _ _"]:
        """Return a sum on the grid of a level."""
        grown = F.interpolate(total, size=self.grids[level], mode="nearest")
        return grown if self.filter is None else grown + self.filter(grown)
