from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import trimesh
from trimesh.transformations import translation_matrix

from hiergen.geometry.mesh_union import (
    cap_flat_holes,
    hole_rims,
    split_parts,
    surface_consistency,
    unite_parts,
)


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_overlapping_parts_unite_to_their_volume() -> None:
    first = trimesh.creation.box(extents=(1, 1, 1))
    second = trimesh.creation.box(extents=(1, 1, 1), transform=translation_matrix((0.5, 0.25, 0)))
    both = trimesh.util.concatenate([first, second])
    assert surface_consistency(both, rng=_rng()) < 0.9
    united = unite_parts(both)
    assert united is not None
    assert united.is_watertight
    assert united.volume == pytest.approx(2 - 0.5 * 0.75)
    assert surface_consistency(united, rng=_rng()) == 1


def test_inside_out_parts_are_turned_and_cavities_filled() -> None:
    shell = trimesh.creation.box(extents=(1, 1, 1))
    cavity = trimesh.creation.box(extents=(0.5, 0.5, 0.5))
    cavity.invert()
    outward = unite_parts(trimesh.util.concatenate([shell, cavity]))
    assert outward is not None
    assert outward.volume == pytest.approx(1.0)
    shell.invert()
    alone = unite_parts(shell)
    assert alone is not None
    assert alone.volume == pytest.approx(1.0)


def test_what_is_open_inconsistent_or_a_sheet_is_left() -> None:
    box = trimesh.creation.box()
    opened = box.copy()
    opened.update_faces(np.arange(12) > 0)
    assert unite_parts(opened) is None
    twisted = trimesh.Trimesh(box.vertices, np.concatenate([box.faces[:1, ::-1], box.faces[1:]]), process=False)
    assert unite_parts(twisted) is None
    assert unite_parts(trimesh.creation.box(extents=(1, 1, 0.001))) is None
    # A sheet doubled back on itself is closed and holds nothing.
    square = np.array([[0, 1, 2], [0, 2, 3]])
    corners = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert unite_parts(trimesh.Trimesh(corners, np.concatenate([square, square[:, ::-1]]), process=False)) is None


def test_without_manifold3d_only_single_parts_are_united(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "manifold3d" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    box = trimesh.creation.box()
    assert unite_parts(box) is not None
    assert unite_parts(trimesh.util.concatenate([box, trimesh.creation.icosphere(subdivisions=1)])) is None


def test_flat_holes_are_capped_with_the_right_orientation() -> None:
    box = trimesh.creation.box(extents=(1, 2, 3))
    for axis in range(3):
        opened = box.copy()
        opened.update_faces(opened.face_normals[:, axis] < 0.5)
        capped, count = cap_flat_holes(opened)
        assert count == 1
        assert capped.is_watertight
        assert capped.is_winding_consistent
        assert capped.volume == pytest.approx(6.0)
    whole, none = cap_flat_holes(box)
    assert none == 0
    assert whole is box


def test_bent_rims_are_left_open() -> None:
    ball = trimesh.creation.icosphere(subdivisions=3)
    # A cut along a saddle: the rim lies in no plane.
    x, y, z = ball.triangles_center.T
    ball.update_faces(z < 0.3 + 0.5 * (x * x - y * y))
    assert len(hole_rims(ball)) == 1
    assert cap_flat_holes(ball)[1] == 0


def test_parts_share_no_edge_and_keep_the_order_of_faces() -> None:
    first = trimesh.creation.box()
    second = trimesh.creation.icosphere(subdivisions=3)
    parts = split_parts(trimesh.util.concatenate([first, second]))
    assert [len(part.faces) for part in parts] == [12, 1280]
    assert all(part.is_watertight for part in parts)
    # Shuffled, so that the faces of the parts alternate.
    both = trimesh.util.concatenate([second, second.copy().apply_translation([3, 0, 0])])
    order = _rng().permutation(len(both.faces))
    mixed = trimesh.Trimesh(both.vertices, both.faces[order], process=False)
    for part in split_parts(mixed):
        is_left = part.vertices[:, 0].mean() < 1
        expected = mixed.triangles[(mixed.triangles_center[:, 0] < 1.5) == is_left]
        np.testing.assert_array_equal(part.triangles, expected)
