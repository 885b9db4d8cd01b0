"""From an occupancy field to a triangle mesh and to a file: marching cubes on the grid of `hiergen.geometry.field_grid`.

Letters: `n` nodes of the grid along an axis, `v` `w` vertices, `f` `g` faces.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Integer
from torch import Tensor

from hiergen.environment import require
from hiergen.files import atomic_path
from hiergen.geometry.field_grid import ExtractionSettings, Field, evaluate_grid

if TYPE_CHECKING:
    import trimesh

#: File formats that `save_mesh` writes, all with normals: per vertex, in STL per face.
MESH_SUFFIXES = (".glb", ".obj", ".ply", ".stl")
#: Color of the material of GLB files, RGBA of 255.
CLAY = (128, 158, 214, 255)
#: Largest number of rounds in which what a simplifier pinched is opened; up to four were needed.
_MAX_REPAIRS = 50
#: Share of the volume that opening may change.
_MAX_CHANGE = 0.02


class EmptySurfaceError(ValueError):
    """The field does not cross the level anywhere on the grid."""


def extract_mesh(
    field: Field, settings: ExtractionSettings | None = None, *, device: torch.device | str = "cpu"
) -> trimesh.Trimesh:
    """Return the surface of one shape as a mesh in the field's coordinates, faces oriented outward.

    Args:
        field: The function of one shape, e.g. `ShapeField.shape(0)`.
        settings: Resolution, box, level and simplification.
        device: Device on which `field` computes.

    Raises:
        EmptySurfaceError: If the field does not cross the level.
        ImportError: If trimesh, scikit-image or fast-simplification (`max_faces` only) is not installed.
    """
    settings = settings or ExtractionSettings()
    return mesh_from_grid(evaluate_grid(field, settings, device=device).values, settings)


def mesh_from_grid(values: Float[Tensor, "n n n"], settings: ExtractionSettings | None = None) -> trimesh.Trimesh:
    """Return the surface in a full grid of values, node 0 at `-bound` and the last at `+bound` along each axis.

    Raises:
        EmptySurfaceError: If all values lie on one side of the level.
        ImportError: As `extract_mesh`.
    """
    settings = settings or ExtractionSettings()
    measure = require("skimage.measure", "shapes", "surface extraction")
    trimesh = require("trimesh", "shapes", "surface extraction")
    low, high = float(values.min()), float(values.max())
    if not low <= settings.level < high:
        raise EmptySurfaceError(
            f"no surface: the field spans {low:.4g} to {high:.4g}, the level is {settings.level:.4g}"
        )
    offset = 0
    if settings.is_closed and _leaves_box(values, settings.level):
        # A far lower value outside puts the closing faces on the box, up to a rounding that is cut off below.
        far = settings.level - 1e3 * max(abs(low), abs(high), 1.0)
        values, offset = F.pad(values, (1,) * 6, value=far), 1
    vertices, faces, _, _ = measure.marching_cubes(values.float().cpu().numpy(), settings.level)
    # scikit-image winds the faces of what lies above the level clockwise.
    faces = faces[:, ::-1]
    cells = values.shape[0] - 1 - 2 * offset
    vertices = (vertices.astype("float64") - offset) * (2 * settings.bound / cells) - settings.bound
    vertices = vertices.clip(-settings.bound, settings.bound)
    if settings.min_piece:
        vertices, faces = _without_small_pieces(vertices, faces, settings.min_piece)
    if settings.max_faces is not None and len(faces) > settings.max_faces:
        simplifier = require("fast_simplification", "shapes", "surface extraction")
        vertices, faces = simplifier.simplify(
            vertices.astype("float32"), faces.astype("int32"), target_count=settings.max_faces
        )
        vertices, faces = _unpinch(vertices, faces.astype(np.int64))
    return trimesh.Trimesh(vertices, faces, process=False)


def _leaves_box(values: Tensor, level: float) -> bool:
    """Return whether a node on the box's faces is inside, so that the mesh is open there; seldom, and closing copies the grid."""
    faces = [values.select(axis, end) for axis in range(3) for end in (0, -1)]
    return any(bool((face > level).any()) for face in faces)


def enclosed_volumes(
    vertices: Float[np.ndarray, "v 3"], faces: Integer[np.ndarray, "f 3"]
) -> tuple[Float[np.ndarray, " k"], Int64[np.ndarray, " f"]]:
    """Return what each surface that hangs together encloses, less than nothing for that of a hollow, and which one each face is of."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges, count = faces[:, [0, 1, 1, 2]].reshape(-1, 2), len(vertices)
    _, group = connected_components(coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count)))
    which = np.unique(group[faces[:, 0]], return_inverse=True)[1].astype(np.int64)
    return np.bincount(which, np.linalg.det(vertices[faces].astype(np.float64)) / 6), which


def _without_small_pieces(
    vertices: Float[np.ndarray, "v 3"], faces: Integer[np.ndarray, "f 3"], share: float
) -> tuple[Float[np.ndarray, "w 3"], Int64[np.ndarray, "g 3"]]:
    volumes, which = enclosed_volumes(vertices, faces)
    # A hollow encloses less than the piece around it, so none outlives its piece.
    is_kept = np.abs(volumes) >= share * volumes.sum()
    is_kept[volumes.argmax()] = True
    used, numbers = np.unique(faces[is_kept[which]], return_inverse=True)
    return vertices[used], numbers.reshape(-1, 3)


def _unpinch(
    vertices: Float[np.ndarray, "v 3"], faces: Int64[np.ndarray, "f 3"]
) -> tuple[Float[np.ndarray, "w 3"], Int64[np.ndarray, "g 3"]]:
    """Return a simplified surface without edges that more than two faces share, or as it is where that would change the shape.

    The simplifier may fold faces onto each other or press two sheets together at an edge, which leaves a few such edges where
    the surface was closed. Folded pairs are removed; an edge of four faces is contracted to its middle.
    """
    points, kept = vertices.copy(), faces
    for _ in range(_MAX_REPAIRS):
        kept = _without_folds(kept[(kept != np.roll(kept, 1, axis=1)).all(axis=1)])
        corners = np.sort(kept[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
        edges, count = np.unique(corners, axis=0, return_counts=True)
        pinched = edges[count > 2]
        if not len(pinched):
            break
        target = np.arange(len(points))
        touched: set[int] = set()
        for first, second in pinched.tolist():
            # Edges that meet are contracted in different rounds: the first may do for both.
            if not touched & {first, second}:
                touched |= {first, second}
                points[first] = (points[first] + points[second]) / 2
                target[second] = first
        kept = target[kept]
    before, after = _volume(vertices, faces), _volume(points, kept)
    if len(pinched) or abs(after - before) > _MAX_CHANGE * abs(before):
        return vertices, faces
    used, numbers = np.unique(kept, return_inverse=True)
    return points[used], numbers.reshape(-1, 3)


def _volume(vertices: Float[np.ndarray, "v 3"], faces: Int64[np.ndarray, "f 3"]) -> float:
    return float(np.linalg.det(vertices[faces].astype(np.float64)).sum() / 6)


def _without_folds(faces: Int64[np.ndarray, "f 3"]) -> Int64[np.ndarray, "g 3"]:
    """Return the faces less those that have the same corners in opposite order, two by two."""
    side = np.sign((faces - np.roll(faces, 1, axis=1)).prod(axis=1))
    _, which = np.unique(np.sort(faces, axis=1), axis=0, return_inverse=True)
    which = which.reshape(-1)
    rest = np.bincount(which, weights=side)
    first = np.unique(2 * which + (side > 0), return_index=True)[1]
    return faces[np.sort(first[side[first] == np.sign(rest[which[first]])])]


def save_mesh(mesh: trimesh.Trimesh, path: str | os.PathLike[str]) -> None:
    """Write a mesh with its normals, atomically; the suffix of `path` chooses among `MESH_SUFFIXES`.

    A mesh without colors gets a plain material in GLB: viewers show it as clay, its front and its back.

    Raises:
        ValueError: If the suffix is none of them.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in MESH_SUFFIXES:
        raise ValueError(f"{str(path)!r} ends in {suffix!r}, expected one of {', '.join(MESH_SUFFIXES)}")
    arguments: dict[str, Any] = {
        ".glb": {"include_normals": True},
        ".obj": {"include_normals": True},
        ".ply": {"vertex_normal": True},
    }.get(suffix, {})
    if suffix == ".glb" and (mesh.visual is None or not mesh.visual.defined):
        mesh = _painted(mesh)
    with atomic_path(path) as temporary:
        mesh.export(temporary, file_type=suffix[1:], **arguments)


def _painted(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    material = PBRMaterial(baseColorFactor=CLAY, metallicFactor=0.0, roughnessFactor=0.85, doubleSided=True)
    painted = mesh.copy()
    painted.visual = TextureVisuals(material=material)
    return painted
