from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from mesh_writers import comb_prism, l_prism, random_solid, rotation

from hiergen.geometry.formats.polygons import Refused, strip_triangles
from hiergen.geometry.formats.triangulation import triangulate
from hiergen.geometry.meshes import load_mesh


def check(points: np.ndarray, triangles: np.ndarray) -> None:
    """Check that triangles cover a polygon once, and share its edges and no others with what is outside."""
    count = len(points)
    assert len(triangles) == count - 2
    edges = [(int(t[k]), int(t[(k + 1) % 3])) for t in triangles for k in range(3)]
    assert len(set(edges)) == len(edges)
    alone = {edge for edge in edges if edge[::-1] not in set(edges)}
    assert alone == {(k, (k + 1) % count) for k in range(count)}
    corner = points[triangles]
    areas = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]) / 2
    whole = areas.sum(axis=0)
    along = areas @ whole / np.linalg.norm(whole)
    assert along.min() > 1e-9 * np.linalg.norm(whole)


@pytest.mark.parametrize("seed", range(12))
def test_random_polygons_are_covered_once_wherever_they_begin(seed: int) -> None:
    draws = random.Random(seed)
    for _ in range(10):
        solid = random_solid(draws)
        for face in solid.polygons:
            points = solid.vertices[np.roll(face, draws.randrange(len(face)))]
            check(points, triangulate(points, np.arange(len(face)), np.array([len(face)])))


def test_corners_on_straight_sides_stay_corners() -> None:
    draws = random.Random(3)
    for solid in (l_prism(), comb_prism()):
        outline = solid.vertices[solid.polygons[-1]]
        for parts in (2, 3, 5):
            following = np.roll(outline, -1, axis=0)
            points = np.concatenate(
                [a + (b - a) * np.arange(parts)[:, None] / parts for a, b in zip(outline, following, strict=True)]
            )
            # Turned, they are on a straight side only up to rounding.
            points = 100 * points @ rotation(draws).T
            check(points, triangulate(points, np.arange(len(points)), np.array([len(points)])))


def test_warped_and_crossing_polygons_stay_closed_along_their_edges() -> None:
    rng = np.random.default_rng(0)
    for count in (4, 5, 9, 20):
        angle = np.arange(count) * 2 * np.pi / count
        warped = np.stack([np.cos(angle), np.sin(angle), rng.uniform(-0.2, 0.2, count)], axis=1)
        warped[1] *= 0.3
        check(warped, triangulate(warped, np.arange(count), np.array([count])))
        chaos = rng.random((count, 3))
        triangles = triangulate(chaos, np.arange(count), np.array([count]))
        edges = np.concatenate([triangles[:, [k, (k + 1) % 3]] for k in range(3)])
        balance = np.zeros((count, count), int)
        np.add.at(balance, (edges[:, 0], edges[:, 1]), 1)
        balance -= balance.T
        expected = np.zeros_like(balance)
        expected[np.arange(count), (np.arange(count) + 1) % count] = 1
        np.testing.assert_array_equal(balance, expected - expected.T)


def test_stars_are_not_taken_for_convex() -> None:
    angle = np.arange(5) * 4 * np.pi / 5
    star = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    triangles = triangulate(star, np.arange(5), np.array([5]))
    fan = np.array([(0, 1, 2), (0, 2, 3), (0, 3, 4)])
    assert not np.array_equal(triangles, fan)


def test_many_sizes_at_once(tmp_path: Path) -> None:
    points = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0.5, 0.2, 0], [5, 5, 0]])
    corners, sizes = np.array([0, 1, 5, 0, 1, 2, 3, 0, 4, 1, 2, 3, 1, 2, 5]), np.array([3, 4, 5, 3])
    triangles = triangulate(points, corners, sizes)
    assert triangles[:4].tolist() == [[0, 1, 5], [1, 2, 5], [0, 1, 2], [2, 3, 0]]
    corner = points[triangles[4:]]
    assert np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])[:, 2].sum() / 2 == pytest.approx(0.9)


def test_huge_polygons_are_read_if_convex_and_refused_if_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    angle = np.arange(20_000) * 2 * np.pi / 20_000
    circle = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    assert len(triangulate(circle, np.arange(len(circle)), np.array([len(circle)]))) == len(circle) - 2
    lines = [f"v {float(x)!r} {float(y)!r} 0" for x, y, _ in circle * (1 + 0.1 * (np.arange(len(circle)) % 2))[:, None]]
    (tmp_path / "a.obj").write_text("\n".join(lines) + "\nf " + " ".join(map(str, range(1, len(circle) + 1))))
    with pytest.raises(
        ValueError, match=r"a\.obj' has a polygon of 20,000 corners that is not convex, at most 10,000 are read"
    ):
        load_mesh(tmp_path / "a.obj")
    with pytest.raises(Refused):
        triangulate(
            circle * (1 + 0.1 * (np.arange(len(circle)) % 2))[:, None], np.arange(len(circle)), np.array([len(circle)])
        )


def test_strips_begin_anew_at_minus_one_and_at_each_row() -> None:
    values = np.array([0, 1, 2, 3, -1, 4, 5, 6, 7, 8, 9, 10])
    assert strip_triangles(values, np.array([0, 8])).tolist() == [
        [0, 1, 2],
        [2, 1, 3],
        [4, 5, 6],
        [7, 8, 9],
        [9, 8, 10],
    ]
    assert strip_triangles(np.array([0, 1]), np.array([0])).shape == (0, 3)
