"""Finite scalar quantization: every channel is rounded to one of a few levels, and a code is the combination of all. No codebook.

Letters: `b` batch, `n` tokens, `d` channels of a code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hiergen.bottlenecks.base import Bottleneck, BottleneckOutput
from hiergen.nn.running.precision import widen, without_autocast


class ScalarQuantizer(Bottleneck):
    """Each channel squashed by tanh and rounded to one of its levels; no parameters, no loss.

    A channel of L levels has the values -1, ..., in steps of 1 / (L // 2): up to 1 for odd L, up to one step less for even L. The first
    channel is the least significant digit of an id. The gradient passes straight through the rounding. Everything is computed in float32
    at least, whatever autocast says.

    Args:
        levels: Number of values of each channel, at least 2.

    Attributes:
        vocab_size: Number of codes, the product of the levels.

    Raises:
        ValueError: If there is no channel, or one has fewer than two levels.

    Source:
        FSQ, arXiv:2309.15505.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(int(level) for level in levels)
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"levels is {self.levels}, expected at least one channel, each of at least 2 levels")
        self.vocab_size = math.prod(self.levels)
        self._weights = tuple(math.prod(self.levels[:index]) for index in range(len(self.levels)))

    def forward(self, latents: Float[Tensor, "b n d"], *, rng: torch.Generator | None = None) -> BottleneckOutput:
        """Return codes in [-1, 1] and ids; there are no losses, and `rng` is not read."""
        with without_autocast(latents.device):
            columns = zip(widen(latents).unbind(-1), self.levels, self._weights, strict=True)
            codes, ids = [], torch.zeros(latents.shape[:-1], dtype=torch.int64, device=latents.device)
            for x, level, weight in columns:
                bounded = _bound(x, level)
                step = bounded.detach().round()
                # Zero in value: the gradient of the squashing, past the rounding.
                codes.append((step + (bounded - bounded.detach())) / (level // 2))
                ids = ids + (step.long() + level // 2) * weight
            return BottleneckOutput(torch.stack(codes, dim=-1), ids, {})

    def lookup(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """Return the codes of ids, in float32."""
        codes = [
            (ids // weight % level - level // 2).float() / (level // 2)
            for weight, level in zip(self._weights, self.levels, strict=True)
        ]
        return torch.stack(codes, dim=-1)


def _bound(x: Tensor, level: int) -> Tensor:
    """Return numbers that round to `level` different integers, from -(level // 2) on; 0 stays 0."""
    # A thousandth more than the outermost integers, so that these are reached.
    half = (level - 1) * 1.001 / 2
    offset = 0.0 if level % 2 else 0.5
    return (x + math.atanh(offset / half)).tanh() * half - offset
