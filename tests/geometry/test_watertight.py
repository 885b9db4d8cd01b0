from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trimesh
from trimesh.transformations import translation_matrix

from hiergen.data.shapes.procedural import procedural_shape
from hiergen.geometry.poses import apply_transform, fit_transform
from hiergen.geometry.ray_crossings import contains
from hiergen.geometry.watertight import WatertightSettings, closest_on_triangles, lattice_samples, make_watertight

VOXELS = WatertightSettings(method="voxels", resolutions=(64, 32))


def _normalized(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    mesh = mesh.copy()
    mesh.vertices = apply_transform(fit_transform(np.asarray(mesh.vertices), np.eye(3)), np.asarray(mesh.vertices))
    return mesh


def _box_without_a_face() -> trimesh.Trimesh:
    box = trimesh.creation.box(extents=(1.0, 0.8, 0.6))
    box.update_faces(box.face_normals[:, 1] > -0.5)
    return _normalized(box)


def test_a_box_with_a_missing_face_is_solid_again() -> None:
    whole = _normalized(trimesh.creation.box(extents=(1.0, 0.8, 0.6)))
    points = np.random.default_rng(0).uniform(-1.05, 1.05, (3000, 3))
    half = 0.95 * np.array([1.0, 0.8, 0.6])
    for settings in (WatertightSettings(), VOXELS):
        result = make_watertight(_box_without_a_face(), settings)
        assert result.method == ("exact" if settings.method == "auto" else "voxels")
        assert result.mesh.is_watertight
        assert result.notes["capped_holes"] == 1
        assert result.mesh.volume == pytest.approx(whole.volume, rel=0.02)
        inside = contains(np.asarray(result.mesh.triangles), points)
        clear = (np.abs(np.abs(points) - half) > 0.03).all(axis=1)
        np.testing.assert_array_equal(inside[clear], (np.abs(points) < half).all(axis=1)[clear])


def test_without_capping_a_wide_hole_leaves_a_thin_shell() -> None:
    settings = WatertightSettings(method="voxels", resolutions=(64, 32), cap_holes=False)
    result = make_watertight(_box_without_a_face(), settings)
    assert result.mesh.is_watertight
    assert result.mesh.volume < 0.15 * 1.9**3 * 0.8 * 0.6
    # No grid of the list could tell: the coarsest leaks as well. Rays could.
    assert "leaks" not in result.notes
    assert result.notes["hollow"] > 0.3


def test_a_leak_is_noticed_and_a_coarser_grid_used() -> None:
    ball = trimesh.creation.icosphere(subdivisions=4)
    # A bent hole about 0.25 across: wider than the fine shell closes (0.08), narrower than the coarse one (0.29).
    far = np.linalg.norm(ball.vertices - ball.vertices[0], axis=1) > 0.1
    ball.update_faces(far[ball.faces].all(axis=1))
    ball = _normalized(ball)
    fine_only = make_watertight(ball, WatertightSettings(method="voxels", resolutions=(64,), cap_holes=False))
    assert fine_only.mesh.volume < 1.0
    result = make_watertight(ball, WatertightSettings(method="voxels", resolutions=(64, 24), cap_holes=False))
    assert result.notes["resolution"] == 24
    assert result.notes["leaks"]["64"] > 0.9
    assert result.mesh.is_watertight
    assert result.mesh.volume == pytest.approx(4 / 3 * np.pi * 0.95**3, rel=0.03)


def _without_patch(mesh: trimesh.Trimesh, number: int, first: int) -> trimesh.Trimesh:
    """Return the mesh without `number` faces that are connected, beginning with `first`."""
    neighbors: dict[int, list[int]] = {}
    for one, other in mesh.face_adjacency.tolist():
        neighbors.setdefault(one, []).append(other)
        neighbors.setdefault(other, []).append(one)
    gone = [first]
    for face in gone:
        gone += [other for other in neighbors[face] if other not in gone]
    mesh = mesh.copy()
    mesh.update_faces(~np.isin(np.arange(len(mesh.faces)), gone[:number]))
    return mesh


BALL_VOLUME = 4 / 3 * np.pi * 0.95**3
QUICK = WatertightSettings(resolutions=(64,))


@pytest.mark.parametrize("resolutions", [(96, 64), (64,), (32,)])
@pytest.mark.parametrize("first", [0, 413, 1000])
def test_a_ball_without_five_scattered_faces_stays_solid(resolutions: tuple[int, ...], first: int) -> None:
    ball = trimesh.creation.icosphere(subdivisions=3)
    # Faces that meet at corners only: their rims touch, and none of them is flat together.
    corner = int(ball.faces[first][0])
    around = np.flatnonzero((ball.faces == corner).any(axis=1))
    ring = np.flatnonzero(np.isin(ball.faces, ball.faces[around]).any(axis=1))
    ball.update_faces(~np.isin(np.arange(len(ball.faces)), [*around[::2], *ring[:3]]))
    result = make_watertight(_normalized(ball), WatertightSettings(resolutions=resolutions))
    assert result.mesh.is_watertight
    assert result.mesh.volume == pytest.approx(BALL_VOLUME, rel=0.05)
    assert "hollow" not in result.notes


@pytest.mark.parametrize("subdivisions", [3, 4])
@pytest.mark.parametrize("share", [0.02, 0.04, 0.06])
def test_bent_holes_of_a_ball_are_closed(subdivisions: int, share: float) -> None:
    ball = trimesh.creation.icosphere(subdivisions=subdivisions)
    # Twice as long as wide around the ball, so that the rim is not flat.
    center = ball.triangles_center
    ball.update_faces((center[:, 2] < 0) | (center[:, 0] ** 2 / 4 + center[:, 1] ** 2 > 2 * share))
    result = make_watertight(_normalized(ball), QUICK)
    assert (result.notes["capped_holes"], result.notes["filled_holes"]) == (0, 1)
    assert result.mesh.is_watertight
    assert result.mesh.volume == pytest.approx(BALL_VOLUME, rel=0.12)
    assert "hollow" not in result.notes


@pytest.mark.parametrize("share", [0.08, 0.12, 0.2, 0.3])
def test_larger_holes_are_closed_or_told(share: float) -> None:
    ball = trimesh.creation.icosphere(subdivisions=3)
    center = ball.triangles_center
    ball.update_faces((center[:, 2] < 0) | (center[:, 0] ** 2 / 4 + center[:, 1] ** 2 > 2 * share))
    result = make_watertight(_normalized(ball), QUICK)
    assert result.mesh.volume > 0.8 * BALL_VOLUME or result.notes["hollow"] > 0.3


def test_a_corner_that_is_cut_off_is_closed() -> None:
    box = trimesh.creation.box().subdivide().subdivide().subdivide()
    box.update_faces(np.linalg.norm(box.triangles_center - 0.5, axis=1) > 0.3)
    result = make_watertight(_normalized(box), QUICK)
    assert (result.method, result.notes["filled_holes"]) == ("exact", 1)
    assert result.mesh.volume == pytest.approx(1.9**3, rel=0.02)


def test_holes_of_one_part_of_several_are_closed() -> None:
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.6)
    ball.update_faces((ball.triangles_center[:, 0] < 0) | (np.abs(ball.triangles_center[:, 1]) > 0.2) | (np.abs(ball.triangles_center[:, 2]) > 0.4))  # fmt: skip
    ball.apply_translation((1.5, 0, 0))
    both = trimesh.util.concatenate([trimesh.creation.box(), ball])
    result = make_watertight(_normalized(both), QUICK)
    assert result.notes["filled_holes"] == 1
    scale = 1.9 / 2.6
    assert result.mesh.volume == pytest.approx((1 + 4 / 3 * np.pi * 0.6**3) * scale**3, rel=0.1)


def test_faces_of_any_orientation_do_not_hide_a_hole() -> None:
    ball = trimesh.creation.icosphere(subdivisions=3)
    ball = _without_patch(ball, 60, 7)
    faces = ball.faces.copy()
    faces[::2] = faces[::2, ::-1]
    result = make_watertight(_normalized(trimesh.Trimesh(ball.vertices, faces, process=False)), QUICK)
    assert result.notes["filled_holes"] == 1
    assert result.mesh.volume == pytest.approx(BALL_VOLUME, rel=0.08)


def test_a_solid_that_is_too_open_is_told() -> None:
    ball = trimesh.creation.icosphere(subdivisions=4)
    x, y, z = ball.triangles_center.T
    ball.update_faces(z < 0.5 + 0.15 * np.sin(3 * np.arctan2(y, x)))
    for settings in (QUICK, WatertightSettings(resolutions=(64,), cap_holes=False)):
        result = make_watertight(_normalized(ball), settings)
        assert result.method == "voxels"
        assert result.mesh.is_watertight
        assert result.mesh.volume < 0.5
        assert 0.3 < result.notes["hollow"] < 1
        assert "filled_holes" not in result.notes


@pytest.mark.parametrize("height", ["x * y", "0.3 * np.sin(4 * x) * np.cos(3 * y)", "np.abs(x)", "0 * x"])
def test_cloth_stays_cloth(height: str) -> None:
    x, y = np.meshgrid(np.linspace(-1, 1, 30), np.linspace(-1, 1, 30))
    points = np.stack([x, y, eval(height)], axis=-1).reshape(-1, 3)
    grid = np.arange(900).reshape(30, 30)
    faces = np.concatenate([np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:]], -1), np.stack([grid[:-1, :-1], grid[1:, 1:], grid[:-1, 1:]], -1)]).reshape(-1, 3)  # fmt: skip
    result = make_watertight(_normalized(trimesh.Trimesh(points, faces)), WatertightSettings(resolutions=(64,), cap_holes=height != "0 * x"))  # fmt: skip
    assert result.method == "voxels"
    assert not {"hollow", "filled_holes"} & set(result.notes)
    assert result.mesh.volume < 0.4


def test_overlapping_parts_become_one_solid() -> None:
    first = trimesh.creation.box(extents=(1, 0.5, 0.5))
    second = trimesh.creation.box(extents=(0.4, 0.9, 0.4), transform=translation_matrix((0.2, 0.1, 0)))
    both = _normalized(trimesh.util.concatenate([first, second]))
    exact, voxels = make_watertight(both), make_watertight(both, VOXELS)
    assert (exact.method, voxels.method) == ("exact", "voxels")
    volume = (1 * 0.25 + 0.16 * 0.9 - 0.4 * 0.5 * 0.4) * 1.9**3
    assert exact.mesh.volume == pytest.approx(volume)
    assert voxels.mesh.volume == pytest.approx(volume, rel=0.03)
    assert voxels.mesh.is_watertight
    assert voxels.notes["consistency"] > 0.99


def test_sheets_get_a_thickness_of_about_a_voxel() -> None:
    sheet = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]])
    plate = trimesh.creation.box(extents=(1, 1, 0.0005))
    for mesh in (sheet, plate):
        result = make_watertight(_normalized(mesh), WatertightSettings(resolutions=(64,)))
        assert result.method == "voxels"
        assert result.mesh.is_watertight
        thickness = result.mesh.volume / 1.9**2
        assert 0.02 < thickness < 0.05


def test_voxels_agree_with_a_known_solid() -> None:
    shape = procedural_shape(5)
    mesh = shape.to_mesh()
    result = make_watertight(mesh, WatertightSettings(method="voxels", resolutions=(64,)))
    points = np.random.default_rng(0).uniform(-1, 1, (20_000, 3))
    own, other = (contains(np.asarray(part.triangles), points) for part in (mesh, result.mesh))
    assert (own & other).sum() / (own | other).sum() > 0.95
    again = make_watertight(mesh, WatertightSettings(method="voxels", resolutions=(64,)))
    np.testing.assert_array_equal(result.mesh.vertices, again.mesh.vertices)


def test_self_crossing_surfaces_are_remeshed() -> None:
    # One closed part whose right side is folded through its left: what sticks out there is inside out.
    ball = trimesh.creation.icosphere(subdivisions=3)
    vertices = ball.vertices.copy()
    vertices[:, 0] = np.where(vertices[:, 0] > 0.3, 0.9 - vertices[:, 0] * 2.5, vertices[:, 0])
    result = make_watertight(_normalized(trimesh.Trimesh(vertices, ball.faces)), WatertightSettings(resolutions=(64,)))
    assert result.method == "voxels"
    assert result.notes["consistency"] > 0.98


def test_samples_cover_the_surface() -> None:
    rng = np.random.default_rng(0)
    triangles = rng.random((20, 3, 3)) * np.array([3.0, 1.0, 0.05])
    samples, face = lattice_samples(triangles, 0.1)
    for number, triangle in enumerate(triangles):
        weights = rng.dirichlet(np.ones(3), 200)
        own = samples[face == number]
        distance = np.linalg.norm((weights @ triangle)[:, None] - own[None], axis=2).min(axis=1)
        assert distance.max() <= 0.1
    # A sliver gets a row of samples, not a square of them.
    sliver = np.array([[[0.0, 0, 0], [1, 0, 0], [0.5, 0.001, 0]]])
    assert len(lattice_samples(sliver, 0.01)[0]) < 210


def test_closest_points_are_no_farther_than_any_other() -> None:
    rng = np.random.default_rng(0)
    triangles, points = rng.normal(size=(300, 3, 3)), rng.normal(size=(300, 3)) * 2
    triangles[0, 2] = triangles[0, 1]
    found = closest_on_triangles(triangles, points)
    weights = rng.dirichlet(np.full(3, 0.6), 3000)
    candidates = np.einsum("sk,pkc->psc", weights, triangles)
    best = np.linalg.norm(candidates - points[:, None], axis=2).min(axis=1)
    distance = np.linalg.norm(found - points, axis=1)
    assert (distance <= best + 1e-9).all()
    assert (best - distance).max() < 0.15
    # The answer lies on the triangle: its barycentric weights are a convex combination.
    for triangle, point in zip(triangles[1:40], found[1:40], strict=True):
        weight = np.linalg.lstsq(np.vstack([triangle.T, np.ones(3)]), np.append(point, 1.0), rcond=None)[0]
        assert weight.min() > -1e-6
        np.testing.assert_allclose(weight @ triangle, point, atol=1e-8)


def test_bad_meshes_are_named() -> None:
    with pytest.raises(ValueError, match="the mesh has no faces to close"):
        make_watertight(trimesh.Trimesh())
    with pytest.raises(ValueError, match=r"the mesh reaches to 2\.5, expected at most 0\.95; normalize it first"):
        make_watertight(trimesh.creation.box(extents=(5, 1, 1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "method is 'magic', expected 'auto' or 'voxels'"),
        ({"resolutions": (64, 128)}, r"resolutions are \[64, 128\], expected decreasing numbers"),
        ({"resolutions": (8,)}, "the coarsest resolution is 8, thickness 1.25, max_leak 0.2"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], message: str) -> None:
    # Where types are checked as the suite runs, a wrong literal is refused before our message is.
    with pytest.raises((ValueError, TypeError), match=f"{message}|Type-check error"):
        WatertightSettings(**change)
