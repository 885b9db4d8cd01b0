from __future__ import annotations

import math

import numpy as np
import pytest
import trimesh

from hiergen.data.shapes.procedural import procedural_shape
from hiergen.geometry.poses import apply_transform, yaw_rotation
from hiergen.metrics.geometry import (
    GeometryProtocol,
    align_by_yaw,
    chamfer_distance,
    compare_meshes,
    count_pieces,
    f_score,
    nearest_distances,
    normal_consistency,
    volume_iou,
)

QUICK = GeometryProtocol(num_points=4000, resolution=32)


def _brute(a: np.ndarray, b: np.ndarray) -> tuple[list[float], list[int]]:
    """Nearest distances and indices from every row of a to b, by plain loops."""
    distances, indices = [], []
    for p in a.tolist():
        row = [math.dist(p, q) for q in b.tolist()]
        distances.append(min(row))
        indices.append(row.index(min(row)))
    return distances, indices


def test_cloud_measures_agree_with_plain_loops() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(37, 6)), rng.normal(size=(53, 6))
    for cloud in (a, b):
        cloud[:, 3:] /= np.linalg.norm(cloud[:, 3:], axis=1, keepdims=True)
    (there, there_index), (back, back_index) = _brute(a[:, :3], b[:, :3]), _brute(b[:, :3], a[:, :3])

    np.testing.assert_allclose(nearest_distances(a[:, :3], b[:, :3])[0], there)
    expected = (sum(there) / 37 + sum(back) / 53) / 2
    assert chamfer_distance(a[:, :3], b[:, :3]) == pytest.approx(expected)
    for threshold in (0.1, 0.5, 1.0):
        precision = sum(d <= threshold for d in there) / 37
        recall = sum(d <= threshold for d in back) / 53
        expected = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        assert f_score(*nearest_distances(a[:, :3], b[:, :3]), threshold) == pytest.approx(expected)
    cosines = [abs(float(a[i, 3:] @ b[j, 3:])) for i, j in enumerate(there_index)]
    back_cosines = [abs(float(b[i, 3:] @ a[j, 3:])) for i, j in enumerate(back_index)]
    assert normal_consistency(a[:, 3:], b[:, 3:], np.array(there_index), np.array(back_index)) == pytest.approx(
        (sum(cosines) / 37 + sum(back_cosines) / 53) / 2
    )


def test_measures_are_symmetric_and_best_for_equal_clouds() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((50, 3)), rng.random((60, 3))
    assert chamfer_distance(a, b) == pytest.approx(chamfer_distance(b, a))
    assert f_score(*nearest_distances(a, b), 0.2) == pytest.approx(f_score(*nearest_distances(b, a), 0.2))
    assert chamfer_distance(a, a) == 0
    assert f_score(*nearest_distances(a, a), 1e-9) == 1
    assert f_score(*nearest_distances(a, a + 10), 0.1) == 0


def test_empty_clouds_are_refused() -> None:
    with pytest.raises(ValueError, match="clouds have 0 and 2 points, expected at least 1"):
        chamfer_distance(np.zeros((0, 3)), np.zeros((2, 3)))


def test_volume_iou_of_shifted_boxes() -> None:
    box = trimesh.creation.box(extents=(1, 1, 1))
    half = box.copy()
    half.apply_translation((0.5, 0, 0))
    # Half of each is shared: 0.5 / 1.5.
    assert volume_iou(box.triangles, half.triangles, 48) == pytest.approx(1 / 3, abs=0.02)
    assert volume_iou(box.triangles, box.triangles, 16) == 1
    far = box.copy()
    far.apply_translation((5, 0, 0))
    assert volume_iou(box.triangles, far.triangles, 32) == 0
    half.update_faces(np.arange(12) > 0)
    assert compare_meshes(box, half, GeometryProtocol(num_points=10)).volume_iou is None


def test_pieces_are_solids_and_hollows_are_none() -> None:
    box = trimesh.creation.box(extents=(1, 1, 1))
    far, hollow = box.copy(), trimesh.creation.box(extents=(0.5, 0.5, 0.5))
    far.apply_translation((5, 3, -2))
    hollow.invert()
    assert [count_pieces(mesh) for mesh in (trimesh.Trimesh(), box, box + far, box + hollow, box + far + hollow)] == [
        0,
        1,
        2,
        1,
        2,
    ]
    speck = trimesh.creation.box(extents=(0.1, 0.1, 0.1))
    speck.apply_translation((5, 3, -2))
    assert [count_pieces(box + speck, min_share=share) for share in (0.0, 0.0009, 0.0011)] == [2, 2, 1]
    assert {count_pieces(procedural_shape(k).to_mesh()) for k in range(8)} == {1}


def test_concentric_spheres_have_their_known_distance() -> None:
    big, small = (trimesh.creation.icosphere(subdivisions=4, radius=r) for r in (1.0, 0.9))
    protocol = GeometryProtocol(num_points=20_000, thresholds=(0.05, 0.15), resolution=64, normalize="none")
    scores = compare_meshes(small, big, protocol)
    # Between random samples the nearest point is a little farther than the other sphere.
    assert scores.chamfer == pytest.approx(0.1, abs=0.003)
    assert scores.f_scores[0] == 0
    assert scores.f_scores[1] == pytest.approx(1.0, abs=1e-3)
    assert scores.normal_consistency > 0.99
    assert scores.volume_iou == pytest.approx(0.9**3, abs=0.02)


def test_normalization_decides_what_size_and_place_mean() -> None:
    mesh = procedural_shape(3).to_mesh()
    moved = mesh.copy()
    moved.apply_scale(3.0)
    moved.apply_translation((5, -2, 1))
    each = compare_meshes(moved, mesh, QUICK)
    assert each.volume_iou == pytest.approx(1.0, abs=0.02)
    assert each.chamfer < 0.02
    again = compare_meshes(moved, mesh, QUICK)
    assert (each.chamfer, each.f_scores) == (again.chamfer, again.f_scores)
    same = compare_meshes(mesh, mesh, GeometryProtocol(num_points=4000, resolution=32, normalize="reference"))
    assert same.volume_iou == 1
    apart = compare_meshes(moved, mesh, GeometryProtocol(num_points=4000, resolution=32, normalize="reference"))
    assert apart.chamfer > 1
    assert apart.volume_iou == 0


def test_alignment_finds_a_turn_and_is_reported_beside_the_rest() -> None:
    mesh = procedural_shape(3, seed=2).to_mesh()
    turned = mesh.copy()
    turn = np.eye(4)
    turn[:3, :3] = yaw_rotation(1.9)
    turned.apply_transform(turn)
    protocol = GeometryProtocol(num_points=4000, resolution=32, normalize="none", num_yaws=12)
    scores = compare_meshes(turned, mesh, protocol)
    assert scores.aligned is not None
    assert scores.aligned.chamfer < 0.03 < scores.chamfer
    assert scores.aligned.volume_iou is not None
    assert scores.aligned.volume_iou > 0.9
    points = np.random.default_rng(0).random((200, 3))
    found = align_by_yaw(apply_transform(np.linalg.inv(turn), points), points, num_yaws=12)
    np.testing.assert_allclose(found, turn, atol=1e-6)


def test_scores_print_with_their_protocol() -> None:
    box = trimesh.creation.box()
    open_box = box.copy()
    open_box.update_faces(np.arange(12) > 1)
    text = str(compare_meshes(open_box, box, GeometryProtocol(num_points=500, num_yaws=2)))
    assert "IoU n/a" in text
    assert "\naligned: CD" in text
    assert "F@0.02" in text
    assert (
        "[both boxes at center 0 and longest side 2; 500 points uniform by area, seed 0; CD = mean of the two mean distances, "
        "not squared; F at 0.02 and 0.05; NC = mean |cos| of nearest neighbors' normals, both ways; IoU of 64^3 cells; "
        "aligned = best of 2 yaws and ICP]" in text
    )


def test_bad_input_is_named() -> None:
    box = trimesh.creation.box()
    with pytest.raises(ValueError, match="the mesh has no faces: there is nothing to compare"):
        compare_meshes(trimesh.Trimesh(), box, QUICK)
    with pytest.raises(ValueError, match="num_points is 0, resolution 64, num_yaws 0"):
        GeometryProtocol(num_points=0)
    with pytest.raises(ValueError, match=r"thresholds are \(0.0,\), expected positive distances"):
        GeometryProtocol(thresholds=(0.0,))
    # Where types are checked as the suite runs, a wrong literal is refused before our message is.
    with pytest.raises(
        (ValueError, TypeError), match=r"normalize is 'both', expected 'each', 'reference' or 'none'|Type-check"
    ):
        GeometryProtocol(normalize="both")  # type: ignore[arg-type]
