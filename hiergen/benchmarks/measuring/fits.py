"""How a cost grows: the exponent of a power law through measured values, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def fit_power(sizes: Sequence[float | int], values: Sequence[float | int]) -> dict[str, Any]:
    """Return the exponent p of value ~ size^p, by least squares in logarithms.

    Args:
        sizes: Sizes of the work, ascending, each above 0.
        values: What each size cost, each above 0.

    Returns:
        "exponent"; "low" and "high", the ends of its 95 % interval by Student's t (None for two sizes); and "last", the exponent between the
        two largest sizes, where what does not grow with the work weighs least.

    Raises:
        ValueError: If there are fewer than two sizes, another number of values, or one is not above 0.
    """
    if len(sizes) != len(values) or len(sizes) < 2:
        raise ValueError(f"sizes and values are {len(sizes)} and {len(values)} numbers, expected two or more, as many")
    if min(*sizes, *values) <= 0:
        raise ValueError(f"sizes are {list(sizes)} and values {list(values)}, expected all above 0")
    x, y = ([math.log(value) for value in row] for row in (sizes, values))
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - middle_x) ** 2 for a in x)
    exponent = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / spread
    half = None
    if len(sizes) > 2:
        from scipy.stats import t

        rest = sum((b - middle_y - exponent * (a - middle_x)) ** 2 for a, b in zip(x, y, strict=True))
        half = float(t.ppf(0.975, len(sizes) - 2)) * math.sqrt(rest / (len(sizes) - 2) / spread)
    return {
        "exponent": exponent,
        "low": None if half is None else exponent - half,
        "high": None if half is None else exponent + half,
        "last": (y[-1] - y[-2]) / (x[-1] - x[-2]),
    }
