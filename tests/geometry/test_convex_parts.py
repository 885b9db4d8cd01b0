from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec

import numpy as np
import pytest

from hiergen.geometry.convex_parts import ConvexSolid, box, ellipsoid, frustum, lathe, sweep
from hiergen.geometry.ray_crossings import contains


def test_box_and_frustum_have_their_volumes_and_planes() -> None:
    solid = ConvexSolid((box((1.0, 2.0, 3.0), (0.5, 0.0, 0.0)),))
    assert solid.to_mesh().volume == pytest.approx(6.0)
    np.testing.assert_allclose(solid.bounds(), [[0, -1, -1.5], [1, 1, 1.5]])
    # A frustum over a regular polygon: the volume between similar polygons of areas A and a is h (A + a + sqrt(A a)) / 3.
    polygon = 0.5 * 12 * np.sin(2 * np.pi / 12)
    big, small = polygon * 0.5**2, polygon * 0.3**2
    mesh = ConvexSolid((frustum((0, 0, 0), (0, 0.9, 0), 0.5, 0.3, sides=12),)).to_mesh()
    assert mesh.volume == pytest.approx(0.9 * (big + small + np.sqrt(big * small)) / 3)


def test_parts_apply_in_order() -> None:
    solid = ConvexSolid((box((2, 2, 2)), box((1, 1, 4)).cut(), box((0.5, 0.5, 0.5))))
    points = np.array([[0.9, 0, 0], [0.4, 0, 0], [0.1, 0.1, 0.1], [0, 0, 0.9]])
    assert solid.contains(points).tolist() == [True, False, True, False]
    assert (solid.field(points) < 0).tolist() == [True, False, True, False]
    # 8 without the 1 x 1 x 2 channel, and a cube of 1/8 put back into it.
    assert solid.to_mesh().volume == pytest.approx(8 - 2 + 0.125)


def test_inside_test_agrees_with_the_mesh() -> None:
    arc = np.stack([np.cos(np.linspace(0, 2, 5)), np.sin(np.linspace(0, 2, 5)), np.zeros(5)], axis=1)
    parts = (*lathe([(0.3, -0.5), (0.5, 0.0), (0.2, 0.6)]), *sweep(arc, 0.2), ellipsoid((0, 0.6, 0), (0.4, 0.3, 0.4)))
    solid = ConvexSolid(parts).normalized(0.95)
    mesh = solid.to_mesh()
    assert mesh.is_watertight
    np.testing.assert_allclose(np.ptp(mesh.bounds, axis=0).max(), 1.9)
    np.testing.assert_allclose(mesh.bounds.sum(axis=0), 0, atol=1e-6)
    points = np.random.default_rng(0).uniform(-1, 1, (3000, 3))
    np.testing.assert_array_equal(solid.contains(points), contains(mesh.triangles, points))


def test_without_manifold3d_the_mesh_is_a_grid_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    solid = ConvexSolid((box((1.0, 1.0, 1.0)), frustum((0, 0, -1), (0, 0, 1), 0.2).cut()))
    exact = solid.to_mesh().volume
    found = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "manifold3d" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    mesh = solid.to_mesh()
    assert mesh.is_watertight
    assert len(mesh.faces) > 10_000
    assert mesh.volume == pytest.approx(exact, rel=0.01)
