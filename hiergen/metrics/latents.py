"""Statistics of continuous tokens, channel by channel.

Letters: `c` channels of a token.
"""

from __future__ import annotations

import dataclasses

import torch

from hiergen.pyramid import TokenPyramid


@dataclasses.dataclass(frozen=True)
class ChannelStatistics:
    """Moments of one channel over all samples and tokens.

    Attributes:
        mean: Mean.
        std: Standard deviation (of the numbers at hand: n in its denominator).
        kurtosis: Fourth standardized moment: 3 for a normal distribution, more with heavier tails; 0 for a constant channel.
    """

    mean: float
    std: float
    kurtosis: float


def channel_statistics(pyramid: TokenPyramid) -> list[ChannelStatistics]:
    """Return the moments of every channel over all tokens of all levels, in float64.

    Raises:
        ValueError: If a level is discrete.
    """
    for index, spec in enumerate(pyramid.specs):
        if spec.is_discrete:
            raise ValueError(f"level {index} is discrete: its ids have no moments")
    tokens = pyramid.concat().flatten(0, 1).double()
    mean = tokens.mean(dim=0)
    variance = (tokens - mean).square().mean(dim=0)
    fourth = (tokens - mean).pow(4).mean(dim=0)
    kurtosis = torch.where(variance > 0, fourth / variance.square(), 0.0)
    columns = (mean.tolist(), variance.sqrt().tolist(), kurtosis.tolist())
    return [ChannelStatistics(*values) for values in zip(*columns, strict=True)]
