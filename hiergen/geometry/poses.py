"""Rotations of shapes, and bringing them back into the box.

Letters: `p` points.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped

#: Half the longest side of a normalized shape; queries are drawn from the slightly larger box of 1.05.
HALF_SIZE = 0.95


def yaw_rotation(angle: float) -> Float[np.ndarray, "3 3"]:
    """Return the rotation about the y axis (up) that turns z towards x."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def random_rotation(rng: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """Return a rotation uniform over all rotations."""
    w, x, y, z = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def fit_transform(
    points: Float[np.ndarray, "p 3"], rotation: Float[np.ndarray, "3 3"], *, half_size: float = HALF_SIZE
) -> Float[np.ndarray, "4 4"]:
    """Return the 4x4 matrix that rotates points and then brings their box to center 0 and longest side `2 * half_size`.

    Raises:
        ValueError: If all points coincide.
    """
    turned = points.astype(np.float64) @ rotation.T
    low, high = turned.min(axis=0), turned.max(axis=0)
    size = float((high - low).max())
    if not size > 0:
        raise ValueError("all points coincide: there is no size to normalize")
    scale = 2 * half_size / size
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * scale
    matrix[:3, 3] = -(low + high) / 2 * scale
    return matrix


def apply_transform(matrix: Float[np.ndarray, "4 4"], points: Shaped[np.ndarray, "p 3"]) -> Float[np.ndarray, "p 3"]:
    """Return points after a 4x4 transform."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]
