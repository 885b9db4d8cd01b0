from __future__ import annotations

import numpy as np
import pytest
import trimesh

from hiergen.geometry import ray_crossings
from hiergen.geometry.ray_crossings import contains, occupancy_grid, vertical_crossings, winding_numbers


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_contains_agrees_with_a_box_and_its_special_positions(rng: np.random.Generator) -> None:
    box = trimesh.creation.box(extents=(1.0, 0.8, 0.6))
    half = np.array([0.5, 0.4, 0.3])
    # The second half shares coordinates with edges and diagonals of the box, as lattices over round meshes do.
    points = np.concatenate([rng.uniform(-1, 1, (3000, 3)), rng.integers(-9, 10, (3000, 3)) / 8.0])
    points = points[(np.abs(np.abs(points) - half) > 1e-9).all(axis=1)]
    np.testing.assert_array_equal(contains(box.triangles, points), (np.abs(points) < half).all(axis=1))


def test_contains_agrees_with_the_convex_hull_of_a_sphere(rng: np.random.Generator) -> None:
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.7)
    points = rng.uniform(-1, 1, (4000, 3))
    plane_distance = np.einsum("fc,pfc->pf", ball.face_normals, points[:, None] - ball.triangles[:, 0][None])
    np.testing.assert_array_equal(contains(ball.triangles, points), (plane_distance <= 0).all(axis=1))


def test_winding_numbers_count_overlapping_parts_and_orientation(rng: np.random.Generator) -> None:
    first = trimesh.creation.box(extents=(1, 1, 1))
    second = trimesh.creation.box(extents=(1, 1, 1), transform=trimesh.transformations.translation_matrix((0.5, 0, 0)))
    both = np.concatenate([first.triangles, second.triangles])
    points = rng.uniform(-1.2, 1.2, (2000, 3))
    expected = sum(
        ((np.abs(points - center) < 0.5).all(axis=1)).astype(int) for center in (np.zeros(3), np.array([0.5, 0, 0]))
    )
    np.testing.assert_array_equal(winding_numbers(both, points), expected)
    np.testing.assert_array_equal(winding_numbers(both[:, ::-1], points), -expected)


def test_crossings_report_height_weights_and_sign() -> None:
    triangle = np.array([[[0.0, 0.0, 1.0], [2.0, 0.0, 3.0], [0.0, 2.0, 5.0]]])
    found = vertical_crossings(triangle, np.array([[0.5, 1.0], [3.0, 3.0]]))
    # (0.5, 1) = 0.25 a + 0.25 b + 0.5 c
    np.testing.assert_allclose(found.weights, [[0.25, 0.25, 0.5]])
    np.testing.assert_allclose(found.height, [0.25 * 1 + 0.25 * 3 + 0.5 * 5])
    assert found.point.tolist() == [0]
    assert found.sign.tolist() == [1]
    assert vertical_crossings(triangle[:, ::-1], np.array([[0.5, 1.0]])).sign.tolist() == [-1]


def test_a_line_through_a_shared_edge_crosses_exactly_once() -> None:
    # The unit square cut along its diagonal, and lines exactly on it.
    square = np.array([[[0, 0, 0], [1, 0, 0], [1, 1, 0]], [[0, 0, 0], [1, 1, 0], [0, 1, 0]]], dtype=float)
    on_diagonal = np.repeat(np.array([0.125, 0.3, 0.7])[:, None], 2, axis=1)
    assert sorted(vertical_crossings(square, on_diagonal).point.tolist()) == [0, 1, 2]


def test_chunks_do_not_change_the_answer(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    ball = trimesh.creation.icosphere(subdivisions=2)
    points = rng.uniform(-1, 1, (500, 3))
    whole = winding_numbers(ball.triangles, points)
    monkeypatch.setattr(ray_crossings, "MAX_PAIRS", 100)
    np.testing.assert_array_equal(winding_numbers(ball.triangles, points), whole)


def test_no_triangles_and_no_points_are_fine() -> None:
    assert not contains(np.zeros((0, 3, 3)), np.zeros((4, 3))).any()
    assert contains(trimesh.creation.box().triangles, np.zeros((0, 3))).shape == (0,)


def test_occupancy_grid_equals_contains_at_its_cell_centers() -> None:
    mesh = trimesh.creation.annulus(r_min=0.3, r_max=0.8, height=0.9)
    grid = occupancy_grid(mesh.triangles, 16)
    axis = (np.arange(16) + 0.5) / 8 - 1
    centers = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    np.testing.assert_array_equal(grid.reshape(-1), contains(mesh.triangles, centers))
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.8)
    assert occupancy_grid(ball.triangles, 64).mean() * 8 == pytest.approx(ball.volume, rel=0.005)


def test_occupancy_grid_refuses_no_resolution() -> None:
    with pytest.raises(ValueError, match="resolution is 0, expected at least 1"):
        occupancy_grid(np.zeros((0, 3, 3)), 0)
