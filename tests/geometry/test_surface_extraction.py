"""Surface extraction on fields whose surface is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.geometry.surface_extraction import (
    CLAY,
    EmptySurfaceError,
    _unpinch,
    _without_folds,
    enclosed_volumes,
    extract_mesh,
    save_mesh,
)

Field = Callable[[Tensor], Tensor]


def norms(points: Tensor) -> Tensor:
    """The norms of points, one number at a time: matrix products and sums round otherwise where they come in other chunks."""
    return sum(axis.square() for axis in points.unbind(dim=-1)).sqrt()


def sphere(radius: float, center: tuple[float, ...] = (0.0, 0.0, 0.0)) -> Field:
    return lambda points: radius - norms(points - torch.tensor(center))


def box(sides: tuple[float, ...], center: tuple[float, ...] = (0.0, 0.0, 0.0)) -> Field:
    def field(points: Tensor) -> Tensor:
        away = (points - torch.tensor(center)).abs() - torch.tensor(sides) / 2
        return -(norms(away.clamp(min=0)) + away.amax(dim=-1).clamp(max=0))

    return field


@pytest.mark.parametrize("depth", [4, 5, 6, 7])
def test_a_sphere_comes_back_at_its_place_at_every_depth(depth: int) -> None:
    mesh = extract_mesh(sphere(0.8), ExtractionSettings(depth=depth))
    radii = np.linalg.norm(mesh.vertices, axis=1)
    # Linear interpolation between nodes h apart errs by h² / (8 r) at most where the field bends with 1 / r.
    spacing = 2.1 / 2**depth
    assert abs(radii - 0.8).max() < spacing**2 / (8 * 0.8) * 1.5
    assert abs(radii.mean() - 0.8) < 2e-3
    np.testing.assert_allclose(mesh.bounds, [[-0.8] * 3, [0.8] * 3], atol=spacing**2)
    assert mesh.is_watertight
    outward = (mesh.face_normals * mesh.triangles_center).sum(axis=1)
    assert (outward > 0).all()
    assert mesh.volume > 0


def test_a_box_off_center_keeps_its_sides() -> None:
    mesh = extract_mesh(box((0.9, 0.5, 0.3), (0.2, -0.3, 0.1)), ExtractionSettings(depth=6, bound=1.0))
    np.testing.assert_allclose(mesh.bounds, [[-0.25, -0.55, -0.05], [0.65, -0.05, 0.25]], atol=5e-3)
    assert mesh.volume == pytest.approx(0.9 * 0.5 * 0.3, rel=0.03)


def test_a_shape_that_leaves_the_box_is_closed_or_left_open() -> None:
    closed = extract_mesh(sphere(1.3), ExtractionSettings(depth=5))
    assert closed.is_watertight
    np.testing.assert_allclose(closed.bounds, [[-1.05] * 3, [1.05] * 3], atol=1e-3)
    assert not extract_mesh(sphere(1.3), ExtractionSettings(depth=5, is_closed=False)).is_watertight


def test_simplification_keeps_the_shape() -> None:
    mesh = extract_mesh(sphere(0.8), ExtractionSettings(depth=6, max_faces=1000))
    assert 500 < len(mesh.faces) <= 1000
    assert abs(np.linalg.norm(mesh.vertices, axis=1) - 0.8).max() < 0.02


def test_what_was_closed_stays_closed_when_simplified() -> None:
    def sponge(points: torch.Tensor) -> torch.Tensor:
        x, y, z = (4 * points).unbind(-1)
        return 0.4 - abs(x.sin() * y.cos() + y.sin() * z.cos() + z.sin() * x.cos())

    # At 1,000 the simplifier leaves four edges of four faces.
    mesh = extract_mesh(sponge, ExtractionSettings(depth=5, max_faces=1000))
    assert 900 < len(mesh.faces) <= 1000
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    # Where the faces are too few for the shape, it is kept, and not closed.
    coarse = extract_mesh(sponge, ExtractionSettings(depth=5, max_faces=600))
    assert coarse.volume > 0.5
    assert not coarse.is_watertight


def test_folded_faces_and_pinched_edges_are_opened() -> None:
    # Two tetrahedra on one edge, a fold beside them, and a corner that nothing uses.
    vertices = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 0], [-1, 0, 0], [-1, -1, 0], [9, 9, 9]], float)
    first = np.array([[0, 2, 3], [0, 3, 1], [0, 1, 2], [1, 3, 2]])
    second = np.array([[0, 4, 5], [0, 5, 1], [0, 1, 4], [1, 5, 4]])
    fold = np.array([[2, 3, 4], [4, 3, 2]])
    np.testing.assert_array_equal(_without_folds(np.concatenate([first, fold])), first)
    # Of three faces on the same corners one is left, of the side that has two.
    np.testing.assert_array_equal(_without_folds(np.concatenate([first, fold, fold[:1]])), [*first, fold[0]])
    # An edge's contraction would take both tetrahedra away: they stay.
    both = np.concatenate([first, second])
    for kept, given in zip(_unpinch(vertices, both), (vertices, both), strict=True):
        np.testing.assert_array_equal(kept, given)
    points, faces = _unpinch(vertices, np.concatenate([first, fold]))
    assert points.shape == (4, 3)
    np.testing.assert_array_equal(points[faces], vertices[first])


def test_small_detached_pieces_are_left_out_where_that_is_asked_for() -> None:
    # A ball with a large and a small hollow, a ball of a twelfth of its volume, and a speck with a hollow of its own.
    ball, hollow, bubble = sphere(0.5), sphere(0.2), sphere(0.09, (0.0, 0.0, 0.35))
    second, speck, within = (
        sphere(0.22, (0.0, 0.78, 0.0)),
        sphere(0.15, (0.0, -0.78, 0.0)),
        sphere(0.08, (0.0, -0.78, 0.0)),
    )

    def field(points: Tensor) -> Tensor:
        large = torch.minimum(ball(points), -torch.maximum(hollow(points), bubble(points)))
        return torch.maximum(torch.maximum(large, second(points)), torch.minimum(speck(points), -within(points)))

    def volumes(share: float) -> list[float]:
        mesh = extract_mesh(field, ExtractionSettings(depth=6, coarse_depth=6, min_piece=share))
        assert mesh.is_watertight
        assert len(np.unique(mesh.faces)) == len(mesh.vertices)
        found, which = enclosed_volumes(mesh.vertices, mesh.faces)
        assert len(which) == len(mesh.faces)
        return sorted(found.tolist())

    def balls(*radii: float) -> Any:
        return pytest.approx([4 / 3 * np.pi * radius**3 for radius in radii], rel=0.1)

    assert volumes(0.0) == balls(-0.2, -0.09, -0.08, 0.15, 0.22, 0.5)
    # With the speck goes its hollow; the bubble is filled.
    assert volumes(0.05) == balls(-0.2, 0.22, 0.5)
    # The largest piece stays, whatever its share.
    assert volumes(0.99) == balls(0.5)


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply", ".stl"])
def test_saved_meshes_come_back_with_normals(suffix: str, tmp_path: Path) -> None:
    mesh = extract_mesh(sphere(0.5), ExtractionSettings(depth=4))
    path = tmp_path / f"shape{suffix}"
    save_mesh(mesh, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    loaded = trimesh.load(path, force="mesh", process=False)
    np.testing.assert_allclose(loaded.bounds, mesh.bounds, atol=1e-6)
    assert len(loaded.faces) == len(mesh.faces)
    assert loaded.volume == pytest.approx(mesh.volume, rel=1e-5)
    mark = {".glb": b'"NORMAL"', ".obj": b"\nvn ", ".ply": b"float nz"}.get(suffix, b"")
    assert mark in path.read_bytes()
    np.testing.assert_allclose(loaded.face_normals, mesh.face_normals, atol=1e-3)


def test_a_mesh_without_colors_gets_a_plain_material_in_glb(tmp_path: Path) -> None:
    plain, painted = trimesh.creation.box(), trimesh.creation.box()
    painted.visual.vertex_colors = np.tile([9, 8, 7, 255], (8, 1))
    for name, mesh in (("plain", plain), ("painted", painted)):
        save_mesh(mesh, tmp_path / f"{name}.glb")
    # The mesh itself is left as it was.
    assert not plain.visual.defined
    material = trimesh.load(tmp_path / "plain.glb", force="mesh").visual.material
    assert tuple(material.baseColorFactor) == CLAY
    assert (material.metallicFactor, material.doubleSided) == (0.0, True)
    loaded = trimesh.load(tmp_path / "painted.glb", force="mesh", process=False)
    assert tuple(loaded.visual.vertex_colors[0]) == (9, 8, 7, 255)


def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EmptySurfaceError, match=r"no surface: the field spans -1.* to -0.*, the level is 0"):
        extract_mesh(lambda points: -points.norm(dim=-1) - 0.1, ExtractionSettings(depth=4))
    with pytest.raises(EmptySurfaceError, match="spans 1 to 1"):
        extract_mesh(lambda points: torch.ones(len(points)), ExtractionSettings(depth=3))
    with pytest.raises(ValueError, match=r"ends in '.fbx', expected one of .glb, .obj, .ply, .stl"):
        save_mesh(trimesh.creation.box(), tmp_path / "shape.fbx")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "skimage.measure", None)
    with pytest.raises(ImportError, match=r'scikit-image: pip install "hiergen\[shapes\]"'):
        extract_mesh(sphere(0.5), ExtractionSettings(depth=3))
