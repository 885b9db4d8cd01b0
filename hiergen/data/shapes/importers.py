"""Reading shapes that others prepared: the `.npz` layouts of the 3DShape2VecSet / CraftsMan family.

Every importer returns the arrays of a `ShapeRecord`; none of these layouts states a mesh, so there are no views. MAR-3D's own files are not
among them: its loader was published without the names of its arrays.

Letters: `p` points.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from hiergen.data.files.folders import is_hidden
from hiergen.data.files.npz_files import open_npz, read_array
from hiergen.geometry.meshes import MeshError
from hiergen.geometry.surface_sampling import farthest_order

Layout = Literal["sdf", "occupancy", "vecset"]

#: Unpacked size beyond which an archive of arrays is refused.
MAX_ARRAY_BYTES = 2**30
#: A signed distance from which CraftsMan counts a point as inside.
SDF_INSIDE = 1e-3
#: Neighbors from which the normal of a point is estimated where a layout has none.
NORMAL_NEIGHBORS = 16


def find_layout_files(folder: Path, layout: Layout) -> list[Path]:
    """Return the file that stands for each shape of a layout, sorted."""
    if layout == "occupancy":
        found = [path for path in folder.rglob("points.npz") if path.with_name("pointcloud.npz").is_file()]
    else:
        found = list(folder.rglob("*.npz"))
    found = sorted(path for path in found if not is_hidden(path.relative_to(folder).as_posix()))
    if layout == "vecset":
        return [path for path in found if path.parent.name != "4_pointcloud"]
    return found


def import_sdf(path: Path) -> dict[str, Any]:
    """Return the arrays of a CraftsMan file: `surface` (N, 6), `rand_points` (M, 3), `sdfs` (M,), positive inside.

    Distances that are not a number become 1, infinite ones +-1, as its loader has it.
    """
    data = _load(path, ("surface", "rand_points", "sdfs"))
    points = _rows(path, data["rand_points"], 3, "rand_points")
    sdf = np.nan_to_num(data["sdfs"].astype(np.float32).reshape(-1), nan=1.0, posinf=1.0, neginf=-1.0)
    if len(sdf) != len(points):
        raise MeshError(path, f"has {len(sdf)} sdfs for {len(points)} rand_points")
    surface = _rows(path, data["surface"], 6, "surface")
    return {**_volume_only(points, sdf >= SDF_INSIDE), "surface": surface, "volume_sdf": sdf}


def import_occupancy(path: Path) -> dict[str, Any]:
    """Return the arrays of an occupancy-network folder: `points.npz` with packed `occupancies`, and `pointcloud.npz`.

    Its shapes are in [-0.5, 0.5] and double in size here.
    """
    data = _load(path, ("points", "occupancies"))
    cloud = _load(path.with_name("pointcloud.npz"), ("points", "normals"))
    points = _rows(path, data["points"], 3, "points") * 2
    packed = data["occupancies"]
    inside = packed.astype(bool)
    if packed.dtype == np.uint8 and len(packed) != len(points):
        inside = np.unpackbits(packed)[: len(points)].astype(bool)
    if len(inside) != len(points):
        raise MeshError(path, f"has {len(inside)} occupancies for {len(points)} points")
    position = _rows(path, cloud["points"], 3, "points") * 2
    surface = np.concatenate([position, _rows(path, cloud["normals"], 3, "normals")], axis=1)
    return {**_volume_only(points, inside), "surface": surface}


def import_vecset(path: Path) -> dict[str, Any]:
    """Return the arrays of a 3DShape2VecSet file: labelled volume and near points; the surface lies in `4_pointcloud/`.

    The surface is scaled by the number in the `.npy` file beside it. It has no normals: they are estimated from neighbors and
    turned from inside to outside by the near points.
    """
    data = _load(path, ("vol_points", "vol_label", "near_points", "near_label"))
    cloud = path.parent / "4_pointcloud" / path.name
    if not cloud.is_file():
        raise MeshError(path, f"has no surface: {str(cloud)!r} does not exist")
    scale_file = path.with_suffix(".npy")
    try:
        scale = float(np.load(scale_file, allow_pickle=False))
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise MeshError(scale_file, f"holds no scale ({type(error).__name__}: {error})") from error
    position = _rows(cloud, _load(cloud, ("points",))["points"], 3, "points") * np.float32(scale)
    arrays: dict[str, Any] = {}
    for kind, prefix in (("volume", "vol"), ("near", "near")):
        arrays[f"{kind}_points"] = _rows(path, data[f"{prefix}_points"], 3, f"{prefix}_points")
        arrays[f"{kind}_occupancy"] = data[f"{prefix}_label"].reshape(-1).astype(np.float32) > 0.5
        if len(arrays[f"{kind}_points"]) != len(arrays[f"{kind}_occupancy"]):
            raise MeshError(path, f"has {prefix}_label of another length than {prefix}_points")
    normals = estimate_normals(position, arrays["near_points"], arrays["near_occupancy"])
    return {**arrays, "surface": np.concatenate([position, normals], axis=1)}


#: The importer of each layout.
IMPORTERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "sdf": import_sdf,
    "occupancy": import_occupancy,
    "vecset": import_vecset,
}


def import_shape(path: str | os.PathLike[str], layout: Layout, *, num_farthest: int) -> dict[str, Any]:
    """Return the arrays of a `ShapeRecord` from a file of a foreign layout.

    Raises:
        MeshError: If the file is damaged, lacks an array, or its arrays do not fit together.
    """
    arrays = IMPORTERS[layout](Path(path))
    if not (arrays["volume_occupancy"].any() or arrays["near_occupancy"].any()):
        raise MeshError(path, "has no query inside the shape")
    arrays["surface"] = arrays["surface"].astype(np.float32)
    arrays["farthest"] = farthest_order(arrays["surface"][:, :3], min(num_farthest, len(arrays["surface"])))
    return arrays


def estimate_normals(
    points: Float[np.ndarray, "p 3"], near: Float[np.ndarray, "q 3"], inside: Bool[np.ndarray, " q"]
) -> Float[np.ndarray, "p 3"]:
    """Return unit normals of a surface cloud: across the plane through each point's neighbors, pointing to the outside.

    Args:
        points: The cloud.
        near: Points near the surface; where none is inside, or none outside, the direction is arbitrary.
        inside: Whether each of `near` is inside.
    """
    from scipy.spatial import cKDTree

    points = points.astype(np.float64)
    neighbor = cKDTree(points).query(points, k=min(NORMAL_NEIGHBORS, len(points)))[1].reshape(len(points), -1)
    centered = points[neighbor] - points[neighbor].mean(axis=1, keepdims=True)
    normals = np.linalg.eigh(np.einsum("pki,pkj->pij", centered, centered))[1][:, :, 0]
    if inside.any() and not inside.all():
        ends = [near[mask][cKDTree(near[mask]).query(points)[1]].astype(np.float64) for mask in (inside, ~inside)]
        normals[((ends[1] - ends[0]) * normals).sum(axis=1) < 0] *= -1
    return normals.astype(np.float32)


def _load(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with open_npz(path) as file:
            size = sum(item.file_size for item in file.zip.infolist())
            if size > MAX_ARRAY_BYTES:
                raise MeshError(path, f"unpacks to {size:,} bytes, at most {MAX_ARRAY_BYTES:,} are read")
            missing = [name for name in names if name not in file.files]
            if missing:
                raise MeshError(path, f"lacks {', '.join(missing)}; it holds {', '.join(sorted(file.files))}")
            return {name: read_array(file, name, path) for name in names}
    except MeshError:
        raise
    except ValueError as error:
        raise MeshError(path, f"is no readable .npz ({error})") from error


def _rows(path: Path, values: np.ndarray, width: int, name: str) -> np.ndarray:
    if values.ndim != 2 or values.shape[1] != width or not len(values):
        raise MeshError(path, f"has {name} of shape {values.shape}, expected (n, {width})")
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise MeshError(path, f"has {name} that are not finite")
    return values


def _volume_only(points: np.ndarray, inside: np.ndarray) -> dict[str, Any]:
    return {
        "volume_points": points,
        "volume_occupancy": inside,
        "near_points": np.zeros((0, 3), np.float32),
        "near_occupancy": np.zeros(0, bool),
    }
