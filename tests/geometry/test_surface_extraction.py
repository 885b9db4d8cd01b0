"""Surface extraction on fields whose surface is known, and refined grids against dense ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from hiergen.geometry.surface_extraction import (
    EmptySurfaceError,
    ExtractionSettings,
    _unpinch,
    _without_folds,
    evaluate_grid,
    extract_mesh,
    mesh_from_grid,
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


def rod(radius: float, length: float) -> Field:
    """A rod along x between the coarse nodes, known only as inside or outside, without any distance to go by."""

    def field(points: Tensor) -> Tensor:
        away = norms(points[:, 1:] - 0.033)
        return torch.where((away < radius) & (points[:, 0] > 0) & (points[:, 0] < length), 1.0, -1.0)

    return field


def sheet(thickness: float, normal: tuple[float, ...], offset: float) -> Field:
    """A flat disc of radius 0.8 of any direction."""
    unit = torch.nn.functional.normalize(torch.tensor(normal), dim=0)

    def field(points: Tensor) -> Tensor:
        along = sum((points * unit).unbind(dim=-1))
        return torch.minimum(thickness / 2 - (along - offset).abs(), sphere(0.8)(points))

    return field


def union(*fields: Field) -> Field:
    return lambda points: torch.stack([field(points) for field in fields]).amax(dim=0)


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


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        (sphere(0.8), {}),
        # Thinner than a coarse cell (0.066) and between two layers of its nodes.
        (box((1.2, 1.2, 0.02), (0.0, 0.0, 0.033)), {}),
        # The same in other directions, and not in the middle of its cells.
        (sheet(0.02, (1.0, 1.0, 1.0), 0.0), {}),
        (sheet(0.02, (0.3, 1.0, -0.5), 0.3), {}),
        (sheet(0.012, (0.0, 0.0, 1.0), 0.049), {}),
        # Two parts, one of them smaller than a coarse cell and on none of its nodes.
        (union(sphere(0.4, (-0.5, 0.0, 0.0)), sphere(0.03, (0.7, 0.033, 0.033))), {}),
        # On no coarse node: found where it leaves the ball, followed to its end by crossings alone.
        (union(sphere(0.2), rod(0.03, 0.9)), {"slack": 0.0, "margin": 0}),
        (sphere(0.8), {"level": 0.25, "margin": 0}),
        (lambda points: -sphere(0.5)(points), {"coarse_depth": 4}),
    ],
    ids=[
        "sphere",
        "thin-plate",
        "diagonal-sheet",
        "oblique-sheet",
        "off-center-sheet",
        "detached",
        "thin-rod",
        "level",
        "hollow",
    ],
)
def test_the_refined_grid_gives_the_dense_surface(field: Field, settings: dict[str, Any]) -> None:
    refined = ExtractionSettings(depth=7, **settings)
    dense = ExtractionSettings(depth=7, level=refined.level, coarse_depth=7)
    sparse, full = evaluate_grid(field, refined), evaluate_grid(field, dense)
    assert full.num_queries == 129**3
    assert sparse.num_queries == int(sparse.is_evaluated.sum()) < 129**3 / 5
    assert torch.equal(sparse.values[sparse.is_evaluated], full.values[sparse.is_evaluated])
    assert torch.equal(sparse.values > refined.level, full.values > refined.level)
    found, expected = mesh_from_grid(sparse.values, refined), mesh_from_grid(full.values, dense)
    assert np.array_equal(found.vertices, expected.vertices)
    assert np.array_equal(found.faces, expected.faces)


def test_without_safety_the_thin_plate_is_missed() -> None:
    """Shows that the margin and the slack above are what finds it."""
    plate = box((1.2, 1.2, 0.02), (0.0, 0.0, 0.033))
    with pytest.raises(EmptySurfaceError):
        extract_mesh(plate, ExtractionSettings(depth=7, slack=0.0, margin=0))


def test_a_sphere_at_129_needs_a_ninth_of_the_dense_queries() -> None:
    assert evaluate_grid(sphere(0.8)).num_queries <= 129**3 / 9


def test_nothing_is_refined_in_vain_beside_a_plane() -> None:
    """Beside the faces of a solid, crossings alone decide: the slack adds edges and corners at most."""
    solid = box((1.2, 1.2, 1.2), (0.01, 0.01, 0.01))
    by_slack, by_signs = (
        evaluate_grid(solid, ExtractionSettings(depth=6, margin=0, slack=slack)).num_queries for slack in (0.5, 0.0)
    )
    assert by_signs <= by_slack < 1.05 * by_signs


def test_the_field_is_asked_in_chunks() -> None:
    sizes = []

    def field(points: Tensor) -> Tensor:
        sizes.append(len(points))
        assert points.dtype == torch.float32
        return sphere(0.6)(points).half()

    grid = evaluate_grid(field, ExtractionSettings(depth=5, coarse_depth=3, chunk_size=500))
    assert max(sizes) == 500
    assert sum(sizes) == grid.num_queries
    whole = evaluate_grid(field, ExtractionSettings(depth=5, coarse_depth=3))
    assert torch.equal(grid.values, whole.values)


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


def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EmptySurfaceError, match=r"no surface: the field spans -1.* to -0.*, the level is 0"):
        extract_mesh(lambda points: -points.norm(dim=-1) - 0.1, ExtractionSettings(depth=4))
    with pytest.raises(EmptySurfaceError, match="spans 1 to 1"):
        extract_mesh(lambda points: torch.ones(len(points)), ExtractionSettings(depth=3))
    with pytest.raises(ValueError, match=r"ends in '.fbx', expected one of .glb, .obj, .ply, .stl"):
        save_mesh(trimesh.creation.box(), tmp_path / "shape.fbx")
    for name, value in (("depth", 0), ("coarse_depth", 0), ("margin", -1), ("slack", -0.5), ("chunk_size", 0)):
        with pytest.raises(ValueError, match=f"{name} is {value}, expected at least"):
            ExtractionSettings(**{name: value})
    with pytest.raises(ValueError, match=r"bound is 0\.0, expected a positive number"):
        ExtractionSettings(bound=0.0)
    with pytest.raises(ValueError, match="max_faces is 3, expected at least 4"):
        ExtractionSettings(max_faces=3)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "skimage.measure", None)
    with pytest.raises(ImportError, match=r'scikit-image: pip install "hiergen\[shapes\]"'):
        extract_mesh(sphere(0.5), ExtractionSettings(depth=3))
