"""The Fréchet distance between two sets of features, whatever they are features of.

Letters: `n m` samples, `d` features.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Shaped


def frechet_distance(features: Shaped[np.ndarray, "n d"], reference: Shaped[np.ndarray, "m d2"]) -> float:
    """Return the Fréchet distance between the normal distributions with the mean and covariance of two sets of features.

    |mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^1/2), in float64, with the root taken as that of the symmetric
    C_1^1/2 C_2 C_1^1/2.

    Raises:
        ValueError: If a set holds fewer than two features, or features of another length or not finite.
    """
    sets = [np.asarray(value, np.float64) for value in (features, reference)]
    for value in sets:
        if len(value) < 2 or value.shape[1] != sets[0].shape[1] or not np.isfinite(value).all():
            raise ValueError(
                f"features have shapes {sets[0].shape} and {sets[1].shape}, expected (n, d) finite ones, n > 1"
            )
    difference = sets[0].mean(axis=0) - sets[1].mean(axis=0)
    first, second = (np.atleast_2d(np.cov(value, rowvar=False)) for value in sets)
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(min=0)).sum()
    # Rounding can leave a tiny negative number where the sets agree.
    return max(0.0, float(difference @ difference + np.trace(first) + np.trace(second) - 2 * cross))
