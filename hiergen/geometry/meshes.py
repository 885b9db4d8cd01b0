"""Reading meshes from files that nobody vouches for: one way in, one error.

Every check that can be made on the bytes comes before a parser sees them: what a file claims to hold is compared with what it
has, since a few hundred bytes can ask for gigabytes. No other file is opened for it, nothing is fetched, nothing is unpacked.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import os
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import trimesh

#: Formats that are read, by suffix.
MESH_SUFFIXES = (".glb", ".obj", ".off", ".ply", ".stl")
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
#: glTF: bytes of a component, and components of an element, by their codes.
_COMPONENT_BYTES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
_ELEMENT_SIZES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}


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


@dataclasses.dataclass(frozen=True)
class MeshLimits:
    """Sizes above which a file is not read.

    Attributes:
        max_bytes: Largest size of a file. Text formats take about 0.2 s of CPU per megabyte.
        max_faces: Largest number of triangles.
        max_vertices: Largest number of vertices.
    """

    max_bytes: int = 256 * 2**20
    max_faces: int = 2_000_000
    max_vertices: int = 4_000_000


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
        path: A .glb, .obj, .off, .ply or .stl file.
        limits: Sizes that are too large to read; None takes the defaults.

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
    data = _read_bytes(file, limits)
    _CHECKS[suffix](path, data, limits)
    return _clean(path, _parse(path, data, suffix, limits), limits)


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


def _parse(path: str | os.PathLike[str], data: bytes, suffix: str, limits: MeshLimits) -> trimesh.Trimesh:
    import trimesh

    if suffix == ".obj":
        # The parser knows comments on lines of their own alone.
        data = re.sub(rb"#[^\n]*", b"", data)
    options: dict[str, Any] = {"skip_materials": True} if suffix in (".obj", ".glb", ".ply") else {}
    try:
        # Bytes instead of a path: the parser then has no way to other files.
        loaded = trimesh.load_scene(io.BytesIO(data), file_type=suffix[1:], process=False, **options)
        parts = [part for part in loaded.dump() if isinstance(part, trimesh.Trimesh)]
        total = sum(len(part.faces) for part in parts)
        if total > limits.max_faces:
            raise MeshError(path, f"has {total:,} faces, at most {limits.max_faces:,} are read")
        if not total:
            raise MeshError(path, "holds no faces")
        vertices = np.concatenate([np.asarray(part.vertices, np.float64) for part in parts])
        offsets = np.cumsum([0, *(len(part.vertices) for part in parts)])
        faces = np.concatenate(
            [np.asarray(part.faces, np.int64) + at for part, at in zip(parts, offsets, strict=False)]
        )
    except MeshError:
        raise
    except Exception as error:
        # The parsers raise whatever their code runs into: eight classes were seen in a thousand damaged files.
        raise MeshError(path, f"is damaged ({type(error).__name__}: {_first_line(error)})") from error
    if len(vertices) > limits.max_vertices:
        raise MeshError(path, f"has {len(vertices):,} vertices, at most {limits.max_vertices:,} are read")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise MeshError(path, f"has a face that names vertex {int(faces.max())} of {len(vertices)}")
    return trimesh.Trimesh(vertices, faces, process=False, validate=False)


def _clean(path: str | os.PathLike[str], mesh: trimesh.Trimesh, limits: MeshLimits) -> trimesh.Trimesh:
    used = mesh.vertices[np.unique(mesh.faces)]
    if not np.isfinite(used).all():
        raise MeshError(path, "has coordinates that are not finite")
    largest = float(np.abs(used).max())
    if largest > MAX_COORDINATE:
        raise MeshError(path, f"has coordinates up to {largest:.3g}, expected at most {MAX_COORDINATE:.0e}")
    size = float(np.ptp(used, axis=0).max())
    if not size > 0:
        raise MeshError(path, "is a single point")
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


def _check_glb(path: str | os.PathLike[str], data: bytes, limits: MeshLimits) -> None:
    if data[:4] != b"glTF":
        raise MeshError(path, "is not binary glTF")
    try:
        _, version, length, chunk, kind = struct.unpack_from("<4sIII4s", data)
        if version != 2:
            raise MeshError(path, f"is glTF {version}, expected 2")
        if length > len(data) or chunk + 20 > len(data) or kind != b"JSON":
            raise MeshError(path, f"is truncated: its header says {length:,} bytes, it has {len(data):,}")
        document = json.loads(data[20 : 20 + chunk])
        _check_gltf_extensions(path, document)
        _check_gltf_sizes(path, document, len(data), limits)
        _check_gltf_instances(path, document, limits)
    except MeshError:
        raise
    except (struct.error, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise MeshError(path, f"has a damaged glTF header ({type(error).__name__}: {_first_line(error)})") from error


def _check_gltf_extensions(path: str | os.PathLike[str], document: dict[str, Any]) -> None:
    for name in document.get("extensionsRequired", []):
        if "draco" in name.lower() or "meshopt" in name.lower():
            raise MeshError(path, f"is compressed with {name}; store it uncompressed")
    for item in document.get("buffers", []):
        uri = item.get("uri", "data:")
        if not uri.startswith("data:"):
            raise MeshError(path, f"refers to another file, {uri[:80]!r}")


def _check_gltf_sizes(
    path: str | os.PathLike[str], document: dict[str, Any], available: int, limits: MeshLimits
) -> None:
    for number, accessor in enumerate(document.get("accessors", [])):
        count = accessor["count"]
        size = _COMPONENT_BYTES[accessor["componentType"]] * _ELEMENT_SIZES[accessor["type"]]
        if type(count) is not int or count < 0:
            raise MeshError(path, f"has a glTF accessor {number} of {count!r} elements")
        if "bufferView" in accessor:
            if count * size > available:
                raise MeshError(
                    path, f"claims {count * size:,} bytes in glTF accessor {number}, the file has {available:,}"
                )
        elif count > 3 * limits.max_faces:
            # Without a view the elements are zeros that cost the file nothing and the reader everything.
            raise MeshError(path, f"claims {count:,} elements in glTF accessor {number}, which has no data")


def _check_gltf_instances(path: str | os.PathLike[str], document: dict[str, Any], limits: MeshLimits) -> None:
    accessors, nodes = document.get("accessors", []), document.get("nodes", [])
    faces = []
    for mesh in document.get("meshes", []):
        corners = 0
        for primitive in mesh["primitives"]:
            source = primitive.get("indices", primitive.get("attributes", {}).get("POSITION"))
            corners += accessors[source]["count"] if source is not None else 0
        faces.append(corners // 3)
    total = sum(faces[node["mesh"]] for node in nodes if "mesh" in node)
    if total > limits.max_faces:
        raise MeshError(path, f"has {total:,} faces, at most {limits.max_faces:,} are read")
    children = [child for node in nodes for child in node.get("children", [])]
    if len(set(children)) != len(children):
        raise MeshError(path, "has a glTF node with two parents")


def _check_ply(path: str | os.PathLike[str], data: bytes, limits: MeshLimits) -> None:
    end = data.find(b"end_header", 0, 1 << 16)
    if not data.startswith(b"ply") or end < 0:
        raise MeshError(path, "has no PLY header")
    for element, most in (("vertex", limits.max_vertices), ("face", limits.max_faces)):
        found = re.search(rb"element\s+" + element.encode() + rb"\s+(\d{1,18})\s", data[:end])
        if found is None:
            raise MeshError(path, f"declares no {element} element")
        _check_count(path, int(found[1]), most, element)


def _check_stl(path: str | os.PathLike[str], data: bytes, limits: MeshLimits) -> None:
    claimed = int.from_bytes(data[80:84], "little") if len(data) >= 84 else -1
    if len(data) == 84 + 50 * claimed:
        _check_count(path, claimed, limits.max_faces, "face")
    elif data.lstrip()[:5].lower() == b"solid" and b"\0" not in data[:1024]:
        _check_count(path, data.lower().count(b"endfacet"), limits.max_faces, "face")
    else:
        raise MeshError(
            path, f"is not STL, or truncated: its header says {claimed:,} faces, it has {len(data):,} bytes"
        )


def _check_off(path: str | os.PathLike[str], data: bytes, limits: MeshLimits) -> None:
    head = re.match(rb"\s*[A-Z]{0,3}OFF(?:\s|#[^\n]*\n)*(\d{1,18})\s+(\d{1,18})\s", data[:4096])
    if head is None:
        raise MeshError(path, "has no OFF header")
    _check_count(path, int(head[1]), limits.max_vertices, "vertex")
    _check_count(path, int(head[2]), limits.max_faces, "face")


def _check_obj(path: str | os.PathLike[str], data: bytes, limits: MeshLimits) -> None:
    if b"\0" in data[:4096]:
        raise MeshError(path, "is not text, as OBJ is")
    padded = b"\n" + data
    num_vertices, num_faces = (len(re.findall(rb"\n[ \t]*" + kind + rb"[ \t]", padded)) for kind in (b"v", b"f"))
    if not num_vertices or not num_faces:
        raise MeshError(path, "holds no faces")
    if re.search(rb"\n[ \t]*f[ \t](?:[^\n#]*[ \t])?0+(?:[/ \t\r\n]|$)", padded):
        # The parser would take the last vertex for it, and every face of a file that counts from 0 would be another.
        raise MeshError(path, "has a face that names vertex 0; OBJ counts from 1")
    _check_count(path, num_vertices, limits.max_vertices, "vertex")
    _check_count(path, num_faces, limits.max_faces, "face")


def _check_count(path: str | os.PathLike[str], count: int, most: int, element: str) -> None:
    plural = "vertices" if element == "vertex" else "faces"
    if count == 0:
        raise MeshError(path, f"holds no {plural}")
    if count > most:
        raise MeshError(path, f"has {count:,} {plural}, at most {most:,} are read")


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else "no details"


_CHECKS = {".glb": _check_glb, ".ply": _check_ply, ".stl": _check_stl, ".off": _check_off, ".obj": _check_obj}
