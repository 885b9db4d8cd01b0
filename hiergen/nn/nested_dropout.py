"""Nested dropout: train on random prefixes of a token sequence so that every prefix decodes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

#: How the lengths of prefixes are drawn by `draw_nested_lengths`.
LengthDistribution = Literal["uniform", "powers", "uniform_powers"]


def prefix_probabilities(lengths: Sequence[int], drop_prob: float) -> tuple[float, ...]:
    """Return the probability of every prefix length.

    The last (full) length has `1 - drop_prob`; the others share `drop_prob` in the ratio 1 : 2 : 4 ..., so that short prefixes,
    which are easy to fit and say little, are rare. A single length is always taken.

    Args:
        lengths: Allowed prefix lengths in tokens, ascending.
        drop_prob: Probability of anything but the full length, 0 to 1.

    Raises:
        ValueError: If `lengths` is not ascending and positive or `drop_prob` is no probability.

    Source:
        ResTok's code (arXiv:2601.03955), whose weight of the full length, (1 / p - 1) times the sum of the others, is this one;
        it rounds 1 / p down, which changes nothing for its p = 0.2.
    """
    if not lengths or lengths[0] < 1 or any(a >= b for a, b in itertools.pairwise(lengths)):
        raise ValueError(f"lengths is {tuple(lengths)}, expected ascending positive token counts")
    if not 0.0 <= drop_prob <= 1.0:
        raise ValueError(f"drop_prob is {drop_prob}, expected 0 to 1")
    shorter = len(lengths) - 1
    if shorter == 0:
        return (1.0,)
    total = 2**shorter - 1
    return (*(drop_prob * 2**index / total for index in range(shorter)), 1.0 - drop_prob)


def draw_prefix_lengths(
    batch: int,
    lengths: Sequence[int],
    drop_prob: float,
    *,
    rng: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Int[Tensor, " b"]:
    """Return one prefix length per sample, drawn with `prefix_probabilities`.

    Args:
        batch: Number of samples.
        lengths: Allowed prefix lengths in tokens, ascending.
        drop_prob: Probability of anything but the full length.
        rng: Source of the draws, on its own device; None takes the default generator of `device`.
        device: Device of the result.
    """
    probabilities = prefix_probabilities(lengths, drop_prob)
    # float64, so that the sum of the probabilities cannot leave a gap below 1.
    uniform = torch.rand(batch, generator=rng, device=device if rng is None else rng.device, dtype=torch.float64)
    # Comparisons with Python numbers: a table of probabilities would be copied to the device in every step.
    drawn = torch.full_like(uniform, lengths[0], dtype=torch.int64)
    threshold = 0.0
    for shorter, longer, probability in zip(lengths, lengths[1:], probabilities, strict=False):
        threshold += probability
        drawn = drawn + (uniform >= threshold) * (longer - shorter)
    return drawn.to(device)


def draw_nested_lengths(
    batch: int,
    num_tokens: int,
    distribution: LengthDistribution,
    *,
    rng: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Int[Tensor, " b"]:
    """Return one prefix length per sample, 1 to `num_tokens`, from one uniform number per sample.

    Args:
        batch: Number of samples.
        num_tokens: The full length, a power of two unless the distribution is "uniform".
        distribution: "uniform" takes every length equally often, "powers" every power of two. "uniform_powers" rounds a uniform length
            up to a power of two, so that the full length has probability 1/2, half of it 1/4 and so on.
        rng: Source of the draws, on its own device; None takes the default generator of `device`.
        device: Device of the result.

    Source:
        FlexTok, arXiv:2502.13967.
    """
    uniform = torch.rand(batch, generator=rng, device=device if rng is None else rng.device, dtype=torch.float64)
    if distribution == "powers":
        exponents = (uniform * num_tokens.bit_length()).long()
        return (2**exponents).to(device)
    lengths = (uniform * num_tokens).long() + 1
    if distribution == "uniform_powers":
        # In float64 the logarithm of a power of two is exact.
        lengths = 2 ** lengths.double().log2().ceil().long()
    return lengths.to(device)


def prefix_mask(prefix_lengths: Int[Tensor, " b"], num_tokens: int) -> Bool[Tensor, "b n"]:
    """Return True where a token belongs to its sample's prefix."""
    return torch.arange(num_tokens, device=prefix_lengths.device) < prefix_lengths[:, None]
