"""What a space of continuous tokens looks like: moments by channel, evenness, smoothness in space and along interpolations.

Letters: `b` batch, `c` channels of a token, `h w` the grid of a level.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from hiergen.pyramid import TokenPyramid


@dataclasses.dataclass(frozen=True)
class ChannelStatistics:
    """Moments of one channel over all samples and tokens.

    Attributes:
        mean: Mean of the channel.
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
    _check_continuous(pyramid)
    tokens = pyramid.concat().flatten(0, 1).double()
    mean = tokens.mean(dim=0)
    variance = (tokens - mean).square().mean(dim=0)
    fourth = (tokens - mean).pow(4).mean(dim=0)
    kurtosis = torch.where(variance > 0, fourth / variance.square(), 0.0)
    columns = (mean.tolist(), variance.sqrt().tolist(), kurtosis.tolist())
    return [ChannelStatistics(*values) for values in zip(*columns, strict=True)]


def neighbor_spread(pyramid: TokenPyramid, *, k: int = 5) -> float:
    """Return how unevenly samples fill the space: the deviation of the logarithm of the distance to the k-th nearest neighbor.

    0 where the density is the same around every sample; does not depend on the scale of any channel. A sample is all of its tokens,
    every channel divided by its deviation.

    Raises:
        ValueError: If a level is discrete, there are not more than `k` samples, or a sample has `k` duplicates.
    """
    _check_continuous(pyramid)
    if not 1 <= k < pyramid.batch_size:
        raise ValueError(f"k is {k}, expected at least 1 and below the number of samples, {pyramid.batch_size}")
    tokens = pyramid.concat().double()
    deviation = tokens.flatten(0, 1).std(dim=0)
    samples = (tokens / torch.where(deviation > 0, deviation, 1.0)).flatten(1)
    distances = torch.cdist(samples, samples, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    nearest = distances.kthvalue(k, dim=1).values
    if not bool((nearest > 0).all()):
        raise ValueError(f"a sample has {k} duplicates: its neighbors have no distance")
    return float(nearest.log().std())


def spatial_autocorrelation(pyramid: TokenPyramid) -> float:
    """Return the correlation of horizontally and vertically adjacent tokens of the finest level, a mean over channels that vary.

    Raises:
        ValueError: If a level is discrete, or the finest level is no grid of at least 2 x 2 tokens that vary.
    """
    _check_continuous(pyramid)
    grid = pyramid.specs[-1].grid
    if grid is None or len(grid) != 2 or min(grid) < 2:
        raise ValueError(f"the finest level has the grid {grid}, expected at least 2 x 2 tokens")
    maps = pyramid.levels[-1].double().unflatten(1, grid)  # (b, h, w, c)
    maps = maps - maps.mean(dim=(0, 1, 2))
    variance = maps.square().mean(dim=(0, 1, 2))
    if not bool((variance > 0).any()):
        raise ValueError("no channel of the finest level varies")
    products = (maps[:, 1:] * maps[:, :-1], maps[:, :, 1:] * maps[:, :, :-1])
    correlation = sum(product.mean(dim=(0, 1, 2)) for product in products) / (2 * variance)
    return float(torch.as_tensor(correlation)[variance > 0].mean())


@torch.no_grad()
def interpolation_detour(
    decode: Callable[[TokenPyramid], Tensor],
    distance: Callable[[Tensor, Tensor], Tensor],
    start: TokenPyramid,
    end: TokenPyramid,
    *,
    num_steps: int = 8,
) -> Float[Tensor, " b"]:
    """Return how much longer the decoded path between two samples is than the distance of its ends; 1 for a straight one.

    The path is the straight line between the tokens, decoded at `num_steps + 1` even places; its length is the sum of the distances
    of consecutive images.

    Args:
        decode: Decoder of the tokenizer.
        distance: Maps two batches of images to their distances `(b,)`, as LPIPS does.
        start: Tokens of the samples at one end.
        end: Tokens of the samples at the other end.
        num_steps: Number of steps of the path.

    Raises:
        ValueError: If the two differ in levels or number of samples, a level is discrete, or `num_steps` is below 1.
    """
    _check_continuous(start)
    if start.specs != end.specs or start.batch_size != end.batch_size:
        raise ValueError(
            f"start holds {start.batch_size} samples of {start.specs}, end {end.batch_size} of {end.specs}"
        )
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}, expected at least 1")
    images = []
    for step in range(num_steps + 1):
        levels = tuple(torch.lerp(a, b, step / num_steps) for a, b in zip(start.levels, end.levels, strict=True))
        images.append(decode(TokenPyramid(levels, start.specs)))
    length = sum(distance(a, b) for a, b in itertools.pairwise(images))
    return length / distance(images[0], images[-1])


def _check_continuous(pyramid: TokenPyramid) -> None:
    for index, spec in enumerate(pyramid.specs):
        if spec.is_discrete:
            raise ValueError(f"level {index} is discrete: its ids have no moments")
