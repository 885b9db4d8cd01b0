from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np
import pytest
import trimesh

from hiergen.geometry import surface_sampling as shape_sampling
from hiergen.geometry.surface_sampling import (
    SamplingSettings,
    farthest_order,
    sample_shape,
    sample_sharp_edges,
    sample_surface,
)


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_surface_points_are_uniform_by_area_and_carry_the_normals() -> None:
    box = trimesh.creation.box(extents=(1.0, 0.5, 0.2))
    points, normals, face = sample_surface(box.triangles, 20_000, rng=_rng())
    np.testing.assert_allclose((np.abs(points) / [0.5, 0.25, 0.1]).max(axis=1), 1.0)
    np.testing.assert_allclose(normals, box.face_normals[face], atol=1e-12)
    share = np.bincount(face, minlength=12) / 20_000
    np.testing.assert_allclose(share, box.area_faces / box.area, atol=0.01)
    # Uniform within faces too: each coordinate of a full-width face has mean 0 and variance width^2 / 12.
    top = points[np.abs(normals[:, 1]) > 0.5]
    np.testing.assert_allclose(top[:, 0].var(), 1 / 12, rtol=0.05)


def test_a_surface_without_area_is_refused() -> None:
    with pytest.raises(ValueError, match="the surface has no area"):
        sample_surface(np.zeros((3, 3, 3)), 5, rng=_rng())


def test_sharp_edge_points_lie_on_the_edges() -> None:
    box = trimesh.creation.box(extents=(2.0, 2.0, 2.0))
    found = sample_sharp_edges(box, 500, angle=0.5, rng=_rng())
    on_faces = np.isclose(np.abs(found[:, :3]), 1.0).sum(axis=1)
    # Two coordinates are at the limit on an edge of the cube; the diagonals of its sides are not sharp.
    assert (on_faces >= 2).all()
    np.testing.assert_allclose((found[:, :3] * found[:, 3:]).sum(axis=1), 1.0)
    ball = trimesh.creation.icosphere(subdivisions=3)
    assert len(sample_sharp_edges(ball, 500, angle=0.5, rng=_rng())) == 0


def test_labels_belong_to_the_stored_points() -> None:
    settings = SamplingSettings(
        num_surface=600, sharp_fraction=0.5, num_volume=3000, num_near=500, near_sigmas=(0.005, 0.02), num_farthest=64
    )
    box = trimesh.creation.box(extents=(1.9, 1.0, 0.6))
    half = np.array([0.95, 0.5, 0.3])
    arrays = sample_shape(box, lambda points: (np.abs(points) <= half).all(axis=1), settings, _rng())
    assert arrays["surface"].shape == (600, 6)
    assert arrays["near_points"].shape == (1000, 3)
    assert arrays["volume_points"].dtype == np.float16
    for kind in ("volume", "near"):
        inside = (np.abs(arrays[f"{kind}_points"].astype(np.float64)) <= half).all(axis=1)
        np.testing.assert_array_equal(arrays[f"{kind}_occupancy"], inside)
        assert 0.05 < inside.mean() < 0.6
    assert np.abs(arrays["volume_points"]).max() > 1.04
    edge = np.isclose(np.abs(arrays["surface"][:, :3]), half, atol=1e-6).sum(axis=1) >= 2
    assert 0.48 < edge.mean() < 0.53
    again = sample_shape(box, lambda points: (np.abs(points) <= half).all(axis=1), settings, _rng())
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)


@pytest.mark.parametrize("method", ["exact", "bucket", "torch"])
def test_farthest_order_is_greedy_and_nested(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    if method == "bucket":
        monkeypatch.setattr(shape_sampling, "EXACT_FARTHEST_WORK", 0)
    if method == "torch":

        def without(name: str, package: str | None = None) -> ModuleSpec | None:
            return None if name == "fpsample" else found(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", without)
    elif found("fpsample") is None:
        pytest.skip("fpsample is not installed")
    points = _rng().random((300, 3)).astype(np.float32)
    order = farthest_order(points, 40)
    assert len(set(order.tolist())) == 40
    for step in range(1, 40):
        nearest = np.linalg.norm(points[:, None] - points[order[:step]][None], axis=2).min(axis=1)
        assert nearest[order[step]] == pytest.approx(nearest.max(), abs=1e-6)
    np.testing.assert_array_equal(farthest_order(points, 10), order[:10])
    assert len(farthest_order(points, 0)) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_volume": 0}, "num_volume is 0, expected at least 1"),
        ({"num_farthest": 99_999}, "num_farthest is 99999, expected 0 to num_surface = 65536"),
        ({"sharp_fraction": 2.0}, "sharp_fraction is 2.0, expected 0 to 1"),
        ({"near_sigmas": (0.0,)}, "near_sigmas and box must be positive"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**change)
