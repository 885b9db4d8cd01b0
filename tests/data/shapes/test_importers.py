from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hiergen.data.shapes import importers as shape_importers
from hiergen.data.shapes.importers import estimate_normals, find_layout_files, import_shape
from hiergen.geometry.meshes import MeshError

RADIUS = 0.8


@pytest.fixture
def ball() -> dict[str, np.ndarray]:
    """A sphere as the three layouts store it."""
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(800, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    volume = rng.uniform(-1.05, 1.05, (901, 3))
    near = normals * RADIUS + rng.normal(0, 0.05, normals.shape)
    return {"normals": normals, "surface": normals * RADIUS, "volume": volume, "near": near}


def _inside(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points, axis=1) < RADIUS


def test_sdf_layout(tmp_path: Path, ball: dict[str, np.ndarray]) -> None:
    sdf = RADIUS - np.linalg.norm(ball["volume"], axis=1)
    broken = sdf.copy()
    broken[:3] = [np.nan, np.inf, -np.inf]
    surface = np.concatenate([ball["surface"], ball["normals"]], axis=1)
    np.savez(tmp_path / "a.npz", surface=surface, rand_points=ball["volume"], sdfs=broken)
    arrays = import_shape(tmp_path / "a.npz", "sdf", num_farthest=50)
    np.testing.assert_allclose(arrays["surface"], surface, atol=1e-6)
    np.testing.assert_array_equal(arrays["volume_sdf"][:3], [1, 1, -1])
    np.testing.assert_array_equal(arrays["volume_occupancy"][3:], sdf[3:] >= 1e-3)
    assert len(arrays["near_points"]) == 0
    assert len(arrays["farthest"]) == 50
    assert find_layout_files(tmp_path, "sdf") == [tmp_path / "a.npz"]


@pytest.mark.parametrize("is_packed", [True, False])
def test_occupancy_layout(tmp_path: Path, ball: dict[str, np.ndarray], is_packed: bool) -> None:
    inside = _inside(ball["volume"])
    labels = np.packbits(inside) if is_packed else inside
    np.savez(tmp_path / "points.npz", points=(ball["volume"] / 2).astype(np.float16), occupancies=labels)
    np.savez(tmp_path / "pointcloud.npz", points=ball["surface"] / 2, normals=ball["normals"])
    arrays = import_shape(tmp_path / "points.npz", "occupancy", num_farthest=10)
    np.testing.assert_array_equal(arrays["volume_occupancy"], inside)
    np.testing.assert_allclose(arrays["volume_points"], ball["volume"], atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(arrays["surface"][:, :3], axis=1), RADIUS, atol=1e-6)
    assert find_layout_files(tmp_path, "occupancy") == [tmp_path / "points.npz"]


def _save_vecset(folder: Path, ball: dict[str, np.ndarray]) -> Path:
    (folder / "4_pointcloud").mkdir()
    np.savez(folder / "4_pointcloud" / "m.npz", points=ball["surface"] * 2)
    np.save(folder / "m.npy", np.float64(0.5))
    np.savez(
        folder / "m.npz",
        vol_points=ball["volume"],
        vol_label=_inside(ball["volume"]),
        near_points=ball["near"],
        near_label=_inside(ball["near"]),
    )
    return folder / "m.npz"


def test_vecset_layout(tmp_path: Path, ball: dict[str, np.ndarray]) -> None:
    path = _save_vecset(tmp_path, ball)
    assert find_layout_files(tmp_path, "vecset") == [path]
    arrays = import_shape(path, "vecset", num_farthest=0)
    np.testing.assert_array_equal(arrays["near_occupancy"], _inside(ball["near"]))
    np.testing.assert_allclose(arrays["surface"][:, :3], ball["surface"], atol=1e-6)
    cosine = (arrays["surface"][:, 3:] * ball["normals"]).sum(axis=1)
    assert (cosine > 0.95).mean() > 0.98
    (tmp_path / "m.npy").write_bytes(b"")
    with pytest.raises(MeshError, match=r"m\.npy' holds no scale"):
        import_shape(path, "vecset", num_farthest=0)
    (tmp_path / "4_pointcloud" / "m.npz").unlink()
    with pytest.raises(MeshError, match=r"m\.npz' has no surface: '.*4_pointcloud.*' does not exist"):
        import_shape(path, "vecset", num_farthest=0)


def test_normals_without_near_points_have_any_direction(ball: dict[str, np.ndarray]) -> None:
    normals = estimate_normals(ball["surface"], np.zeros((0, 3)), np.zeros(0, bool))
    assert (np.abs((normals * ball["normals"]).sum(axis=1)) > 0.95).mean() > 0.98


GOOD: dict[str, Any] = {
    "surface": np.eye(3, 6),
    "rand_points": np.eye(3),
    "sdfs": np.ones(3),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sdfs": None}, "lacks sdfs; it holds rand_points, surface"),
        ({"sdfs": np.ones(2)}, "has 2 sdfs for 3 rand_points"),
        ({"surface": np.ones((3, 5))}, r"has surface of shape \(3, 5\), expected \(n, 6\)"),
        ({"rand_points": np.full((3, 3), np.nan)}, "has rand_points that are not finite"),
        ({"sdfs": -np.ones(3)}, "has no query inside the shape"),
        ({"sdfs": np.array([None] * 3)}, "is no readable .npz .*holds pickled Python objects"),
    ],
)
def test_bad_arrays_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(MeshError, match=message):
        import_shape(tmp_path / "a.npz", "sdf", num_farthest=1)


def test_bad_archives_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(MeshError, match=r"is no readable .npz .*is damaged"):
        import_shape(tmp_path / "a.npz", "sdf", num_farthest=1)
    np.savez(tmp_path / "b.npz", **GOOD)
    monkeypatch.setattr(shape_importers, "MAX_ARRAY_BYTES", 100)
    with pytest.raises(MeshError, match="bytes, at most 100 are read"):
        import_shape(tmp_path / "b.npz", "sdf", num_farthest=1)


def test_lengths_must_agree(tmp_path: Path, ball: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "points.npz", points=ball["volume"], occupancies=np.ones(5, bool))
    np.savez(tmp_path / "pointcloud.npz", points=ball["surface"], normals=ball["normals"])
    with pytest.raises(MeshError, match="has 5 occupancies for 901 points"):
        import_shape(tmp_path / "points.npz", "occupancy", num_farthest=1)
    _save_vecset(tmp_path, {**ball, "near": ball["near"]})
    np.savez(
        tmp_path / "m.npz",
        vol_points=ball["volume"],
        vol_label=np.ones(3),
        near_points=ball["near"],
        near_label=np.ones(3),
    )
    with pytest.raises(MeshError, match="has vol_label of another length than vol_points"):
        import_shape(tmp_path / "m.npz", "vecset", num_farthest=1)
