"""Half-widths of 95 % confidence intervals."""

from __future__ import annotations

import math

#: Half of a 95 % interval of a normal distribution, in standard deviations.
NORMAL_95 = 1.96


def mean_half_width(std: float, count: int) -> float:
    """Return half of the 95 % interval of a mean of `count` independent values with deviation `std`, by Student's distribution.

    Args:
        std: Standard deviation of the values, with `count - 1` in its denominator.
        count: Number of values, at least 2.
    """
    from scipy.stats import t

    return float(t.ppf(0.975, count - 1) * std / math.sqrt(count))
