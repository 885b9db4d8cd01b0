"""Reading meshes from files that nobody vouches for: one way in, one error.

The readers of `hiergen.geometry.formats` compare what a file claims to hold with what it has before they make anything of it, since a
few hundred bytes can ask for gigabytes. Nothing is fetched, nothing is unpacked, and no other file is opened but the buffers of a glTF file
in its own folder. What a file holds beside its surface, and what cannot be read of it, is said in a warning.
"""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hiergen.geometry.formats.gltf import read_gltf
from hiergen.geometry.formats.gltf_document import buffer_files
from hiergen.geometry.formats.obj import read_obj
from hiergen.geometry.formats.off import read_off
from hiergen.geometry.formats.ply import read_ply
from hiergen.geometry.formats.polygons import MeshLimits, Polygons, Refused, check_count
from hiergen.geometry.formats.stl import read_stl
from hiergen.geometry.formats.triangulation import triangulate

if TYPE_CHECKING:
    import trimesh

#: Formats that are read, by suffix.
MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".off", ".ply", ".stl")
#: Formats whose buffers may be files of their own.
GLTF_SUFFIXES = (".glb", ".gltf")
#: Coordinates beyond this overflow when areas and volumes are computed.
MAX_COORDINATE = 1e12

_ARCHIVES = {
    b"PK\x03\x04": "zip",
    b"\x1f\x8b": "gzip",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}
_READERS: dict[str, Callable[[bytes, MeshLimits], Polygons]] = {
    ".obj": read_obj,
    ".off": read_off,
    ".ply": read_ply,
    ".stl": read_stl,
}


class MeshError(ValueError):
    """A file cannot be used as a mesh.

    Attributes:
        path: The file.
        reason: What is wrong with it, in a few words.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"mesh {str(path)!r} {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[MeshError], tuple[str, str]]:
        # The default would pickle the one message that `ValueError` got; workers send these between processes.
        return type(self), (self.path, self.reason)


def require_shape_libraries() -> None:
    """Check that the libraries under all shape code are installed.

    Raises:
        ImportError: Naming what is missing and the extra that brings it.
    """
    missing = [name for name in ("trimesh", "scipy", "skimage") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'shapes need {", ".join(missing)}: pip install "hiergen[shapes]"')


def load_mesh(path: str | os.PathLike[str], limits: MeshLimits | None = None) -> trimesh.Trimesh:
    """Return the triangles of a file as one mesh: vertices merged, empty faces dropped, materials ignored, nothing repaired.

    Args:
        path: A .glb, .gltf, .obj, .off, .ply or .stl file.
        limits: Sizes that are too large to read; None takes the defaults.

    Warns:
        UserWarning: What the file holds besides and is not read, such as lines and points.

    Raises:
        MeshError: If the file is missing, not of its kind, too large, damaged, or holds no surface. This is the only error that
            the content of a file can cause.
        ImportError: If trimesh is not installed.
    """
    require_shape_libraries()
    limits = limits or MeshLimits()
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in MESH_SUFFIXES:
        raise MeshError(path, f"has the suffix {suffix!r}, expected one of {', '.join(MESH_SUFFIXES)}")
    return _clean(path, _mesh(path, _read_bytes(file, limits), suffix, limits))


def external_buffers(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files beside a .gltf file that hold its numbers; none for other files, and for those that cannot be read."""
    file = Path(path)
    if file.suffix.lower() != ".gltf":
        return []
    try:
        found = buffer_files(json.loads(file.read_bytes()), file.parent)
    except (ValueError, TypeError, AttributeError, RecursionError, OSError):
        return []
    return [buffer for buffer in found if buffer is not None and buffer.is_file()]


def _read_bytes(file: Path, limits: MeshLimits) -> bytes:
    try:
        size = file.stat().st_size
        if not file.is_file():
            raise MeshError(file, "is not a regular file")
        if size > limits.max_bytes:
            raise MeshError(file, f"has {size:,} bytes, at most {limits.max_bytes:,} are read")
        data = file.read_bytes()
    except OSError as error:
        raise MeshError(file, f"cannot be read ({error.strerror})") from error
    if not data.strip():
        raise MeshError(file, "is empty")
    for magic, name in _ARCHIVES.items():
        if data.startswith(magic):
            raise MeshError(file, f"is a {name} archive; unpack it first")
    return data


def _mesh(path: str | os.PathLike[str], data: bytes, suffix: str, limits: MeshLimits) -> trimesh.Trimesh:
    """Return the triangles of a file, all vertices as they are in it."""
    import trimesh

    try:
        found = (
            read_gltf(data, limits, Path(path).parent) if suffix in GLTF_SUFFIXES else _READERS[suffix](data, limits)
        )
        _check_size(found, limits)
        faces = triangulate(found.vertices, found.corners, found.sizes)
    except Refused as error:
        raise MeshError(path, str(error)) from error
    if found.dropped:
        warnings.warn(f"mesh {str(path)!r} also holds {', '.join(found.dropped)}: not read", stacklevel=3)
    return trimesh.Trimesh(found.vertices, faces, process=False, validate=False)


def _check_size(found: Polygons, limits: MeshLimits) -> None:
    """Drop polygons that are none; refuse what is too large, or has no place."""
    found.drop_small()
    check_count(int((found.sizes - 2).sum()), limits.max_faces, "face")
    check_count(len(found.vertices), limits.max_vertices, "vertex")
    low, high = int(found.corners.min()), int(found.corners.max())
    if low < 0 or high >= len(found.vertices):
        raise Refused(f"has a face that names vertex {low if low < 0 else high} of {len(found.vertices)}")
    used = found.vertices[found.corners]
    if not np.isfinite(used).all():
        raise Refused("has coordinates that are not finite")
    largest = float(np.abs(used).max())
    if largest > MAX_COORDINATE:
        raise Refused(f"has coordinates up to {largest:.3g}, expected at most {MAX_COORDINATE:.0e}")
    if not float(np.ptp(used, axis=0).max()) > 0:
        raise Refused("is a single point")
    # Vertices that no face names may be anything.
    found.vertices = np.where(np.isfinite(found.vertices), found.vertices, 0.0)


def _clean(path: str | os.PathLike[str], mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    used = mesh.vertices[np.unique(mesh.faces)]
    size = float(np.ptp(used, axis=0).max())
    # Merged and judged at unit size, so that neither depends on the unit of length.
    mesh.apply_translation(-used.mean(axis=0))
    mesh.apply_scale(1 / size)
    mesh.merge_vertices()
    mesh.update_faces(mesh.nondegenerate_faces(height=1e-9))
    mesh.update_faces(mesh.unique_faces())
    mesh.remove_unreferenced_vertices()
    if not len(mesh.faces) or not mesh.area > 1e-12:
        raise MeshError(path, "has no area")
    mesh.apply_scale(size)
    mesh.apply_translation(used.mean(axis=0))
    return mesh
