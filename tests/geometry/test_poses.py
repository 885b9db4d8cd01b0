from __future__ import annotations

import numpy as np
import pytest

from hiergen.geometry.poses import HALF_SIZE, apply_transform, fit_transform, random_rotation, yaw_rotation


def test_rotations_are_proper_and_yaw_turns_z_to_x() -> None:
    rng = np.random.default_rng(0)
    rotations = [random_rotation(rng) for _ in range(500)] + [yaw_rotation(0.7)]
    for rotation in rotations:
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1.0)
    np.testing.assert_allclose(yaw_rotation(np.pi / 2) @ [0, 0, 1], [1, 0, 0], atol=1e-12)
    # Uniform rotations send any axis everywhere: the mean is near 0.
    assert np.abs(np.mean([rotation[:, 0] for rotation in rotations[:-1]], axis=0)).max() < 0.1


def test_fitting_brings_the_turned_box_to_the_center() -> None:
    points = np.random.default_rng(0).random((100, 3)) * [4, 1, 2] + 7
    rotation = yaw_rotation(0.4)
    matrix = fit_transform(points, rotation)
    fitted = apply_transform(matrix, points)
    np.testing.assert_allclose(fitted.min(axis=0) + fitted.max(axis=0), 0, atol=1e-12)
    assert np.ptp(fitted, axis=0).max() == pytest.approx(2 * HALF_SIZE)
    linear = matrix[:3, :3]
    scale = np.cbrt(np.linalg.det(linear))
    np.testing.assert_allclose(linear / scale, rotation, atol=1e-12)


def test_a_single_point_has_no_size() -> None:
    with pytest.raises(ValueError, match="all points coincide"):
        fit_transform(np.ones((4, 3)), np.eye(3))
