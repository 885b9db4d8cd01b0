from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import trimesh

from hiergen.data.shapes.procedural import procedural_shape
from hiergen.data.shapes.views import ViewSettings, render_views
from hiergen.geometry.poses import apply_transform
from hiergen.geometry.renders import FILL, RenderSettings, render_mesh, render_points

NORMALS = RenderSettings(shading="normals", field_of_view=0.0, samples=1)


def test_a_picture_shows_the_object_on_white() -> None:
    mesh = procedural_shape(3).to_mesh()
    image = render_mesh(mesh, 48)
    assert image.shape == (48, 48, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, render_mesh(mesh, 48))
    shown = (image < 255).any(axis=2)
    assert 0.08 < shown.mean() < 0.7
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    # Fitted: the longer side takes its share, and both directions are centered.
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == pytest.approx(FILL * 48, abs=2)
    for found in (rows, columns):
        assert abs(found[0] + found[-1] - 47) <= 2
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 10


def test_camera_angles_mean_what_they_say() -> None:
    # Boxes that mark +x, +y and +z, seen along the axes: the visible face of each is at the right place.
    def marker(position: tuple[float, float, float]) -> trimesh.Trimesh:
        return trimesh.creation.box(extents=(0.3,) * 3, transform=trimesh.transformations.translation_matrix(position))

    center = trimesh.creation.box(extents=(1, 1, 1))
    fixed = RenderSettings(is_fitted=False, field_of_view=0.0, samples=1, extent=1.0)

    def where(extra: tuple[float, float, float], azimuth: float, elevation: float = 0.0) -> tuple[float, float]:
        plain = render_mesh(center, 40, azimuth, elevation, fixed).astype(int)
        marked = render_mesh(trimesh.util.concatenate([center, marker(extra)]), 40, azimuth, elevation, fixed).astype(
            int
        )
        row, column = np.argwhere((plain != marked).any(axis=2)).mean(axis=0)
        return (column - 19.5) / 20, (19.5 - row) / 20

    assert where((0.75, 0, 0), 0.0) == pytest.approx((0.7, 0.0), abs=0.1)
    assert where((0, 0.75, 0), 0.0) == pytest.approx((0.0, 0.7), abs=0.1)
    # From +x (a quarter turn), +z is to the left.
    assert where((0, 0, 0.75), math.pi / 2) == pytest.approx((-0.7, 0.0), abs=0.1)
    # From above, +z is at the bottom.
    assert where((0, 0, 0.75), 0.0, math.pi / 2) == pytest.approx((0.0, -0.7), abs=0.1)


def test_nearer_surfaces_hide_farther_ones_and_show_their_normals() -> None:
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.5)
    wall = trimesh.creation.box(extents=(2, 2, 0.1), transform=trimesh.transformations.translation_matrix((0, 0, -1)))
    scene = trimesh.util.concatenate([ball, wall])
    image = render_mesh(scene, 41, 0.0, 0.0, NORMALS).astype(float) / 255 * 2 - 1
    half = 1.0 / FILL
    axis = (np.arange(41) + 0.5) / 41 * 2 * half - half
    x, y = np.meshgrid(axis, -axis)
    for row, column in ((20, 20), (16, 24), (25, 18), (2, 20), (20, 4)):
        px, py = x[row, column], y[row, column]
        on_ball = px * px + py * py < 0.24
        wanted = np.array([px, py, math.sqrt(0.25 - px * px - py * py)]) / 0.5 if on_ball else np.array([0, 0, 1])
        # Sphere facets are smoothed; 8 bits leave 1 / 127.
        np.testing.assert_allclose(image[row, column], wanted, atol=0.03)
    flipped = scene.copy()
    flipped.invert()
    np.testing.assert_array_equal(
        render_mesh(flipped, 41, 0.0, 0.0, NORMALS), render_mesh(scene, 41, 0.0, 0.0, NORMALS)
    )


def test_perspective_makes_far_things_small() -> None:
    # Two equal plates, one behind the other and beside it.
    plates = [
        trimesh.creation.box(extents=(0.8, 0.8, 0.02), transform=trimesh.transformations.translation_matrix((x, 0, z)))
        for x, z in ((-0.5, 0.9), (0.5, -0.9))
    ]
    settings = RenderSettings(field_of_view=math.radians(60), samples=1, is_fitted=False)
    left, right = np.split(
        (render_mesh(trimesh.util.concatenate(plates), 64, 0.0, 0.0, settings) < 255).any(axis=2), 2, axis=1
    )
    assert left.sum() > 1.5 * right.sum()
    with pytest.raises(ValueError, match="the camera stands inside the mesh"):
        render_mesh(trimesh.creation.box(extents=(9, 9, 9)), 8, 0.0, 0.0, settings)


@pytest.mark.parametrize("count", [500, 4000])
@pytest.mark.parametrize("settings", [NORMALS, RenderSettings(is_fitted=False)])
def test_points_show_the_surface_that_they_lie_on(count, settings) -> None:
    """A cone beside a picture of its mesh: nearly the same outline, few holes, what faces away hidden, nearly the same colors."""
    mesh = trimesh.creation.cone(radius=0.8, height=1.5, sections=64)
    points, faces = trimesh.sample.sample_surface(mesh, count, seed=0)
    cloud = np.concatenate([points, mesh.face_normals[faces]], axis=1)
    found, expected = render_points(cloud, 64, settings=settings), render_mesh(mesh, 64, settings=settings)
    np.testing.assert_array_equal(found, render_points(cloud, 64, settings=settings))
    shown, wanted = ((image < 255).any(axis=2) for image in (found, expected))
    # Disks reach beyond the outline; a fitted camera fits the points, which do not reach it.
    assert (wanted & ~shown).sum() < (0.15 if count == 500 else 0.05) * wanted.sum()
    assert (shown & ~wanted).sum() < (0.3 if count == 500 else 0.1) * wanted.sum()
    difference = np.abs(found.astype(int) - expected)[shown & wanted]
    assert np.median(difference) < 12


def test_points_that_face_away_are_not_shown() -> None:
    cloud = np.array([[0.0, 0.0, 0.0, 0.0, 0.0, -1.0], [0.5, 0.5, 0.0, 0.0, 0.0, 1.0]])
    image = render_points(cloud, 32, azimuth=0.0, elevation=0.0, settings=RenderSettings(is_fitted=False))
    rows, columns = np.nonzero((image < 255).any(axis=2))
    assert len(rows)
    assert rows.max() < 16 <= columns.min()
    for size, points in ((0, cloud), (8, cloud[:0])):
        with pytest.raises(ValueError, match=rf"size is {size} for {len(points)} points, expected at least 1 of both"):
            render_points(points, size)


def test_of_points_in_one_place_the_nearest_is_seen() -> None:
    tilted, facing = [0.6, 0.0, 0.8], [0.0, 0.0, 1.0]
    at = [[0.0, 0.0, 0.5, *facing], [0.0, 0.0, -0.5, *tilted]]
    settings = RenderSettings(is_fitted=False)
    alone = [render_points(np.array([point]), 16, 0.0, 0.0, settings) for point in at]
    assert (alone[0] != alone[1]).any()
    for cloud in (np.array(at), np.array(at[::-1])):
        middle = render_points(cloud, 16, 0.0, 0.0, settings)[8, 8]
        np.testing.assert_array_equal(middle, alone[0][8, 8])


def test_views_come_with_their_poses() -> None:
    mesh = procedural_shape(5).to_mesh()
    settings = ViewSettings(num_views=2, num_rotations=2, rotation="any", size=32)
    views, poses = render_views(mesh, settings, rng=np.random.default_rng(0))
    assert len(views) == len(poses) == 4
    assert len(set(views)) == 4
    np.testing.assert_array_equal(poses[:2], np.eye(4)[None].repeat(2, axis=0))
    np.testing.assert_array_equal(poses[2], poses[3])
    moved = apply_transform(poses[2].astype(np.float64), np.asarray(mesh.vertices))
    assert np.ptp(moved, axis=0).max() == pytest.approx(1.9, abs=1e-5)
    again, _ = render_views(mesh, settings, rng=np.random.default_rng(0))
    assert again == views
    none, no_poses = render_views(mesh, ViewSettings(num_views=0), rng=np.random.default_rng(0))
    assert (none, no_poses.shape) == ((), (0, 4, 4))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="size is 0, expected at least 1 pixel"):
        render_mesh(trimesh.creation.box(), 0)
    with pytest.raises(ValueError, match="the mesh has no faces to render"):
        render_mesh(trimesh.Trimesh())


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            RenderSettings,
            {"shading": "toon"},
            "shading is 'toon', expected one of 'clay', 'normals', 'studio', 'studio_normals'",
        ),
        (RenderSettings, {"field_of_view": 3.0}, "field_of_view is 3.0, expected 0 to below pi / 2 radians"),
        (RenderSettings, {"samples": 0}, "samples is 0 and extent 1.3, expected both positive"),
        (ViewSettings, {"num_rotations": 0}, "num_views is 8, num_rotations 0, size 224"),
        (ViewSettings, {"rotation": "roll"}, "rotation is 'roll', expected 'yaw' or 'any'"),
    ],
)
def test_bad_settings_are_refused(kind: Any, change: dict[str, Any], message: str) -> None:
    # Where types are checked as the suite runs, a wrong literal is refused before our message is.
    with pytest.raises((ValueError, TypeError), match=f"{message}|Type-check error"):
        kind(**change)
