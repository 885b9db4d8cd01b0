"""glTF 2.0: the triangles of a scene in its pose of rest, wherever its nodes, skins and instances put them.

Source: Khronos Group, glTF 2.0 Specification, sections 3.5 (scenes), 3.7 (meshes, skins, morph targets);
EXT_mesh_gpu_instancing, KHR_mesh_quantization, KHR_node_visibility.

Letters: `v` vertices, `t` triangles, `i` instances.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from hiergen.geometry.formats.gltf_document import READ_EXTENSIONS, Document, is_harmless
from hiergen.geometry.formats.polygons import MeshLimits, Polygons, Refused

_DRACO = "KHR_draco_mesh_compression"
_LINES_OR_POINTS = ("points", "lines", "lines", "lines")
_DAMAGE = (
    struct.error,
    json.JSONDecodeError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RecursionError,
    OverflowError,
    OSError,
)


def read_gltf(data: bytes, limits: MeshLimits, folder: Path) -> Polygons:
    """Return the triangles of the default scene of a .glb or .gltf file.

    Args:
        data: The file.
        limits: Sizes that are too large to read.
        folder: Where the file lies; its buffers may be files there, or below.

    Raises:
        Refused: If it is none, or damaged, or too large, or needs an extension that is not known here.
    """
    try:
        return _Scene(Document(data, folder, limits), limits).read()
    except Refused:
        raise
    except (*_DAMAGE, ValueError) as error:
        detail = (str(error).strip().splitlines() or ["no details"])[0][:200]
        raise Refused(f"has a damaged glTF description ({type(error).__name__}: {detail})") from error


class _Scene:
    def __init__(self, document: Document, limits: MeshLimits) -> None:
        self.document, self.limits = document, limits
        self.nodes, self.meshes = document.list("nodes"), document.list("meshes")
        self.dropped: dict[str, int] = {}
        self.parents = self._parents()
        self._transforms: dict[int, np.ndarray] = {}

    def read(self) -> Polygons:
        placed = list(self._placed_nodes())
        self._check_faces([number for number, _ in placed])
        self._note_extensions()
        vertices, faces, count = [np.zeros((0, 3))], [np.zeros((0, 3), np.int64)], 0
        for number, is_visible in placed:
            if not is_visible:
                self._drop("meshes of invisible nodes")
                continue
            for points, triangles in self._node_parts(number):
                vertices.append(points)
                faces.append(triangles + count)
                count += len(points)
        corners = np.concatenate(faces).ravel()
        return Polygons(
            np.concatenate(vertices), corners, np.full(len(corners) // 3, 3),
            [f"{count:,} {what}" if count else what for what, count in self.dropped.items()],
        )  # fmt: skip

    def _drop(self, what: str, count: int = 1) -> None:
        self.dropped[what] = self.dropped.get(what, 0) + count

    def _parents(self) -> dict[int, int]:
        parents: dict[int, int] = {}
        for number, node in enumerate(self.nodes):
            for child in node.get("children", []):
                if child in parents:
                    raise Refused("has a glTF node with two parents")
                parents[child] = number
        return parents

    def _placed_nodes(self) -> Iterator[tuple[int, bool]]:
        """Yield the nodes of the default scene that have a mesh, parents first, the last child first, and whether they are visible."""
        scenes = self.document.list("scenes")
        roots = [number for number in range(len(self.nodes)) if number not in self.parents]
        if scenes:
            roots = scenes[self.document.json.get("scene", 0)].get("nodes", [])
        waiting, seen = [(root, True) for root in roots], set()
        while waiting:
            number, is_visible = waiting.pop()
            if number in seen or not 0 <= number < len(self.nodes):
                raise Refused(f"has a scene that reaches glTF node {number} twice, or it is not there")
            seen.add(number)
            node = self.nodes[number]
            is_visible = is_visible and node.get("extensions", {}).get("KHR_node_visibility", {}).get("visible", True)
            if "mesh" in node:
                yield number, is_visible
            waiting.extend((child, is_visible) for child in node.get("children", []))
        elsewhere = sum("mesh" in node for number, node in enumerate(self.nodes) if number not in seen)
        if elsewhere:
            self._drop("meshes of nodes outside its default scene", elsewhere)

    def _check_faces(self, placed: list[int]) -> None:
        """Count the triangles of all instances before any is made."""
        accessors, faces = self.document.list("accessors"), []
        for mesh in self.meshes:
            total = 0
            for part in mesh["primitives"]:
                source = part.get("indices", part.get("attributes", {}).get("POSITION"))
                corners = accessors[source]["count"] if source is not None else 0
                mode = part.get("mode", 4)
                total += corners // 3 if mode == 4 else max(corners - 2, 0) if mode in (5, 6) else 0
            faces.append(total)
        total = 0
        for number in placed:
            node = self.nodes[number]
            attributes = node.get("extensions", {}).get("EXT_mesh_gpu_instancing", {}).get("attributes", {})
            times = max([accessors[source]["count"] for source in attributes.values()], default=1)
            total += faces[node["mesh"]] * times
        if total > self.limits.max_faces:
            raise Refused(f"has {total:,} faces, at most {self.limits.max_faces:,} are read")

    def _note_extensions(self) -> None:
        """Note extensions of whatever has to do with surfaces that are not read."""
        places = [self.document.json]
        for name in ("scenes", "nodes", "meshes", "skins", "accessors", "bufferViews"):
            places += self.document.list(name)
        places += [part for mesh in self.meshes for part in mesh["primitives"]]
        names = {name for place in places for name in place.get("extensions", {})}
        # A compressed mesh that has come so far is read from its plain copy.
        for name in sorted(names - READ_EXTENSIONS):
            if not is_harmless(name) and "compression" not in name:
                self._drop(f"what the extension {name[:60]} says", 0)

    def _transform(self, number: int) -> Float64[np.ndarray, "4 4"]:
        """Return the matrix from a node to the world."""
        chain: list[int] = []
        at: int | None = number
        while at is not None and at not in self._transforms:
            chain.append(at)
            if len(chain) > len(self.nodes):
                raise Refused("has glTF nodes that are their own parents")
            at = self.parents.get(at)
        for step in reversed(chain):
            local = _local_matrix(self.nodes[step])
            self._transforms[step] = self._transforms[self.parents[step]] @ local if step in self.parents else local
        return self._transforms[number]

    def _node_parts(self, number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        node = self.nodes[number]
        matrices = self._instances(number)
        weights = node.get("weights", self.meshes[node["mesh"]].get("weights", []))
        for part in self.meshes[node["mesh"]]["primitives"]:
            found = self._primitive(part, weights)
            if found is None:
                continue
            points, faces = found
            if "skin" in node and "JOINTS_0" in part["attributes"]:
                # Where a skin puts a mesh, the transform of its node has no say.
                yield self._skinned(points, faces, part["attributes"], self.document.list("skins")[node["skin"]])
                continue
            for matrix in matrices:
                yield _moved(points, matrix), faces[:, ::-1] if np.linalg.det(matrix[:3, :3]) < 0 else faces

    def _instances(self, number: int) -> list[np.ndarray]:
        matrix = self._transform(number)
        extension = self.nodes[number].get("extensions", {}).get("EXT_mesh_gpu_instancing")
        if extension is None:
            return [matrix]
        kinds = {"TRANSLATION": "VEC3", "ROTATION": "VEC4", "SCALE": "VEC3"}
        values = {
            name: self.document.accessor(extension["attributes"][name], kind)
            for name, kind in kinds.items()
            if name in extension["attributes"]
        }
        counts = {len(value) for value in values.values()}
        if len(counts) > 1:
            raise Refused(f"has instances of {sorted(counts)} translations, rotations and scales")
        keys = {"TRANSLATION": "translation", "ROTATION": "rotation", "SCALE": "scale"}
        count = counts.pop() if counts else 0
        return [matrix @ _local_matrix({keys[name]: value[k] for name, value in values.items()}) for k in range(count)]

    def _primitive(self, part: dict[str, Any], weights: list[Any]) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the vertices and triangles of a primitive before any node moves it; None if it has no triangles."""
        mode, attributes = part.get("mode", 4), part.get("attributes", {})
        if mode in (0, 1, 2, 3):
            self._drop(f"primitives of {_LINES_OR_POINTS[mode]}")
            return None
        if mode not in (4, 5, 6):
            raise Refused(f"has a glTF primitive of mode {mode!r}, expected 0 to 6")
        position = attributes.get("POSITION")
        if _DRACO in part.get("extensions", {}):
            sources = [position, part["indices"]] if "indices" in part else [position]
            if any(source is None or "bufferView" not in self.document.list("accessors")[source] for source in sources):
                raise Refused(f"is compressed with {_DRACO}; store it uncompressed")
        if position is None:
            self._drop("primitives without positions")
            return None
        points = self.document.accessor(position).astype(np.float64)
        for weight, target in zip(weights, part.get("targets", []), strict=False):
            if weight and "POSITION" in target:
                points = points + weight * self.document.accessor(target["POSITION"])
        order = (
            np.arange(len(points)) if "indices" not in part else self.document.accessor(part["indices"], "SCALAR")[:, 0]
        )
        if len(order) and (order.min() < 0 or order.max() >= len(points)):
            raise Refused(f"has a face that names vertex {int(order.max())} of {len(points)}")
        return points, self._triangles(order, mode)

    def _triangles(self, order: np.ndarray, mode: int) -> Int64[np.ndarray, "t 3"]:
        if mode == 4:
            if len(order) % 3:
                self._drop("corners that are no whole triangle", len(order) % 3)
            return order[: len(order) // 3 * 3].reshape(-1, 3).astype(np.int64)
        number = np.arange(max(len(order) - 2, 0))
        odd = number % 2
        places = [number, number + 1 + odd, number + 2 - odd] if mode == 5 else [number + 1, number + 2, 0 * number]
        return order[np.stack(places, axis=1)].astype(np.int64)

    def _skinned(
        self, points: np.ndarray, faces: np.ndarray, attributes: dict[str, Any], skin: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        matrices = np.stack([self._transform(number) for number in skin["joints"]])
        if "inverseBindMatrices" in skin:
            # Stored column by column.
            inverse = self.document.accessor(skin["inverseBindMatrices"], "MAT4").reshape(-1, 4, 4).transpose(0, 2, 1)
            matrices = matrices @ inverse[: len(matrices)]
        blended, total = np.zeros((len(points), 4, 4)), np.zeros(len(points))
        sets = [number for number in range(len(attributes)) if f"JOINTS_{number}" in attributes]
        for number in sets:
            joints = self.document.accessor(attributes[f"JOINTS_{number}"], "VEC4")
            shares = self.document.accessor(attributes[f"WEIGHTS_{number}"], "VEC4").astype(np.float64)
            for joint, share in zip(joints.T, shares.T, strict=True):
                blended += share[:, None, None] * matrices[joint]
                total += share
        # A vertex without weights follows the first joint; others are brought to a sum of one, as rounded ones are not.
        blended = np.where(
            total[:, None, None] > 0, blended / np.where(total > 0, total, 1)[:, None, None], matrices[0]
        )
        placed = np.einsum("vij,vj->vi", blended[:, :3, :3], points) + blended[:, :3, 3]
        is_mirrored = len(points) > 0 and np.median(np.linalg.det(blended[:, :3, :3])) < 0
        return placed, faces[:, ::-1] if is_mirrored else faces


def _local_matrix(node: dict[str, Any]) -> Float64[np.ndarray, "4 4"]:
    """Return the matrix of a node to its parent, from its entries as they are in the file."""
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    if "rotation" in node:
        rotation = np.array(node["rotation"], np.float64)
        x, y, z, w = rotation / (np.linalg.norm(rotation) or 1.0)
        matrix[:3, :3] = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    if "scale" in node:
        matrix[:3, :3] *= np.array(node["scale"], np.float64)
    if "translation" in node:
        matrix[:3, 3] = node["translation"]
    return matrix


def _moved(points: Float64[np.ndarray, "v 3"], matrix: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "v 3"]:
    if np.array_equal(matrix, np.eye(4)):
        return points
    return points @ matrix[:3, :3].T + matrix[:3, 3]
