"""Solids whose volume and area are known, and writers of every mesh format with the options that files in the wild make use of."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np

FLOAT, UINT = 5126, 5125
TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}


@dataclasses.dataclass
class Solid:
    """Polygons, turned outward, and what they enclose."""

    vertices: np.ndarray
    polygons: list[list[int]]
    volume: float
    area: float

    def moved(self, matrix: np.ndarray, offset: np.ndarray, scale: float = 1.0) -> Solid:
        """Return the solid under a rotation, an offset and a uniform scale."""
        vertices = scale * self.vertices @ matrix.T + offset
        return Solid(vertices, self.polygons, self.volume * scale**3, self.area * scale**2)

    @property
    def triangles(self) -> list[list[int]]:
        """The polygons cut into fans, for polygons that are triangles or convex."""
        return [[face[0], face[k], face[k + 1]] for face in self.polygons for k in range(1, len(face) - 1)]

    @property
    def num_triangles(self) -> int:
        return sum(len(face) - 2 for face in self.polygons)


def prism(outline: np.ndarray, height: float) -> Solid:
    """Return the prism over a simple outline, counter-clockwise; its two caps are single polygons."""
    count, following = len(outline), np.roll(outline, -1, axis=0)
    base = 0.5 * float((outline[:, 0] * following[:, 1] - outline[:, 1] * following[:, 0]).sum())
    around = float(np.linalg.norm(following - outline, axis=1).sum())
    vertices = np.concatenate([np.c_[outline, np.zeros(count)], np.c_[outline, np.full(count, height)]])
    sides = [[k, (k + 1) % count, count + (k + 1) % count, count + k] for k in range(count)]
    caps = [list(range(count))[::-1], list(range(count, 2 * count))]
    return Solid(vertices, sides + caps, base * height, 2 * base + around * height)


def cube() -> Solid:
    return prism(np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]), 1.0)


def l_prism() -> Solid:
    return prism(np.array([[0.0, 0], [3, 0], [3, 1], [1, 1], [1, 3], [0, 3]]), 1.0)


def comb_prism() -> Solid:
    """A comb whose back has corners on its straight side."""
    return prism(np.array([[0.0, 0], [1, 0], [2, 0], [3, 0], [5, 0], [5, 2], [4, 2], [4, 1], [3, 1], [3, 2], [2, 2], [2, 1], [1, 1], [1, 2], [0, 2]]), 2.0)  # fmt: skip


def tetrahedron() -> Solid:
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    return Solid(vertices, [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], 1 / 6, 1.5 + math.sqrt(3) / 2)


def quad_sphere(rings: int = 8) -> Solid:
    """A sphere of quads with triangles at its poles."""
    around = 2 * rings
    polar, turn = np.linspace(0, np.pi, rings + 1)[1:-1], np.arange(around) * 2 * np.pi / around
    grid = np.stack([np.outer(np.sin(polar), np.cos(turn)), np.outer(np.sin(polar), np.sin(turn)), np.repeat(np.cos(polar)[:, None], around, 1)], axis=-1)  # fmt: skip
    vertices = np.concatenate([grid.reshape(-1, 3), [[0, 0, 1], [0, 0, -1]]])
    top, bottom = len(vertices) - 2, len(vertices) - 1
    faces = []
    for k in range(around):
        after = (k + 1) % around
        faces.append([top, k, after])
        for ring in range(rings - 2):
            faces.append(
                [ring * around + k, (ring + 1) * around + k, (ring + 1) * around + after, ring * around + after]
            )
        faces.append([(rings - 2) * around + k, bottom, (rings - 2) * around + after])
    corners = vertices[np.array(Solid(vertices, faces, 0, 0).triangles)]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    volume = float((corners[:, 0] * normals).sum() / 6)
    return Solid(vertices, faces, volume, float(np.linalg.norm(normals, axis=1).sum() / 2))


def joined(solids: list[Solid]) -> Solid:
    """Return several solids, which must lie apart, as one."""
    at = np.cumsum([0, *(len(solid.vertices) for solid in solids)]).tolist()
    polygons = [
        [start + k for k in face] for start, solid in zip(at[:-1], solids, strict=True) for face in solid.polygons
    ]
    return Solid(np.concatenate([s.vertices for s in solids]), polygons, sum(s.volume for s in solids), sum(s.area for s in solids))  # fmt: skip


def rotation(draws: random.Random) -> np.ndarray:
    """Return a random rotation matrix."""
    matrix, upper = np.linalg.qr(np.array([[draws.gauss(0, 1) for _ in range(3)] for _ in range(3)]))
    matrix *= np.sign(np.diag(upper))
    return matrix * np.sign(np.linalg.det(matrix))


def random_solid(draws: random.Random, *, simple: bool = False) -> Solid:
    """Return one to three bodies, turned and scaled, side by side."""
    bodies = []
    for number in range(draws.randint(1, 3)):
        kind = draws.choice(
            ["cube", "tetrahedron", "sphere"]
            if simple
            else ["cube", "tetrahedron", "sphere", "star", "skyline", "comb"]
        )
        if kind == "star":
            count = draws.randint(4, 12)
            angle = (np.arange(count) + [draws.uniform(0, 0.4) for _ in range(count)]) * 2 * np.pi / count
            outline = np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.array(
                [[draws.uniform(0.3, 1)] for _ in range(count)]
            )
            body = prism(np.roll(outline, draws.randrange(count), axis=0), draws.uniform(0.3, 2))
        elif kind == "skyline":
            heights = [draws.randint(1, 4) for _ in range(draws.randint(1, 6))]
            points = [(0.0, 0.0), (float(len(heights)), 0.0)]
            for place in reversed(range(len(heights))):
                points += [(place + 1.0, float(heights[place])), (float(place), float(heights[place]))]
            body = prism(
                np.array([p for p, q in zip(points, points[1:] + points[:1], strict=True) if p != q]),
                draws.uniform(0.3, 2),
            )
        else:
            body = {"cube": cube, "tetrahedron": tetrahedron, "sphere": quad_sphere, "comb": comb_prism}[kind]()
        size = draws.uniform(0.5, 1) / float(np.ptp(body.vertices, axis=0).max())
        bodies.append(body.moved(rotation(draws), np.array([4.0 * number, 0, 0]), size))
    return joined(bodies).moved(
        np.eye(3), np.array([draws.uniform(-5, 5) for _ in range(3)]), 10 ** draws.uniform(-2, 2)
    )


def write_obj(
    path: Path, solid: Solid, *, relative: bool = False, textured: bool = False, interleaved: bool = False, tabs: bool = False,
    indent: str = "", newline: str = "\n", mark: bytes = b"", continued: bool = False, colors: bool = False, extra: str = "",
    comments: bool = False,
) -> None:  # fmt: skip
    """Write an OBJ file. With `interleaved` each face follows the vertices that it is the first to need."""
    gap, ids, lines = ("\t" if tabs else " "), {}, ["# made by a test \\", "mtllib C:\\nowhere\\", "o body", extra]
    points = [" ".join(repr(float(x)) for x in point) + (" 0.1 0.2 0.3" if colors else "") for point in solid.vertices]
    order = [] if interleaved else list(range(len(points)))
    if textured:
        lines += ["vt 0 0", "vt 1 0", "vn 0 0 1"]
    for vertex in order:
        ids[vertex] = len(ids) + 1
        lines.append("v " + points[vertex])
    for number, face in enumerate(solid.polygons):
        for vertex in face:
            if vertex not in ids:
                ids[vertex] = len(ids) + 1
                lines.append("v " + points[vertex])
        words = [str(ids[vertex] - len(ids) - 1 if relative else ids[vertex]) for vertex in face]
        if textured:
            tails = ["/-1/-1", "//-1", "/1", "/2/1"]
            words = [word + tails[number % 4] for word in words]
        text = "f " + " ".join(words)
        if continued:
            text = f"f {words[0]} \\\n {words[1]}\\\n  " + " ".join(words[2:])
        lines += ["g part s#1", f"usemtl m{number}", text + (" # a face" if comments else "")]
    text = "\n".join(indent + line for line in "\n".join(lines).split("\n")) + "\n"
    text = text.replace(" ", gap) if tabs else text
    path.write_bytes(mark + text.replace("\n", newline).encode())


def write_ply(
    path: Path, solid: Solid, *, form: str = "ascii", count_type: str = "uchar", index_type: str = "int", name: str = "vertex_indices",
    coordinate: str = "double", extras: bool = False, strips: bool = False, faces_first: bool = False, tail: bytes = b"", newline: str = "\n",
) -> None:  # fmt: skip
    """Write a PLY file; with `extras` lists and properties stand before and behind the needed ones, and elements between."""
    codes = {
        "uchar": "B",
        "char": "b",
        "ushort": "H",
        "short": "h",
        "uint": "I",
        "int": "i",
        "float": "f",
        "double": "d",
    }
    order = ">" if form == "binary_big_endian" else "<"

    def pack(kind: str, *values: float) -> bytes:
        if form == "ascii":
            return b"".join(b"%r " % (float(v) if kind in ("float", "double") else int(v)) for v in values)
        return struct.pack(
            f"{order}{len(values)}{codes[kind]}", *(float(v) if kind in ("float", "double") else int(v) for v in values)
        )

    end = b"\n" if form == "ascii" else b""
    head, rows = {}, {}
    before, behind = (
        (
            ["property list uchar float extra", "property uchar red"],
            ["property short flags", "property list uint uchar rest"],
        )
        if extras
        else ([], [])
    )
    head["vertex"] = [
        f"element vertex {len(solid.vertices)}",
        *before,
        *(f"property {coordinate} {axis}" for axis in "xyz"),
        *behind,
    ]
    rows["vertex"] = b""

    def row(number: int, middle: bytes) -> bytes:
        if not extras:
            return middle + end
        few = number % 3
        return pack("uchar", few) + pack("float", *[0.5] * few) + pack("uchar", 7) + middle + pack("short", -3) + pack("uint", few) + pack("uchar", *[9] * few) + end  # fmt: skip

    rows["vertex"] = b"".join(row(number, pack(coordinate, *point)) for number, point in enumerate(solid.vertices))
    surface = "tristrips" if strips else "face"
    lists = [[k for face in solid.triangles for k in (*face, -1)]] if strips else solid.polygons
    head[surface] = [
        f"element {surface} {len(lists)}",
        *before,
        f"property list {'int' if strips else count_type} {index_type} {name}",
        *behind,
    ]
    rows[surface] = b"".join(
        row(k, pack("int" if strips else count_type, len(face)) + pack(index_type, *face))
        for k, face in enumerate(lists)
    )
    names = [surface, "vertex"] if faces_first else ["vertex", surface]
    if extras:
        head["camera"], rows["camera"] = ["element camera 1", "property float view"], pack("float", 1.5) + end
        names.insert(1, "camera")
    lines = [
        "ply",
        f"format {form} 1.0",
        "comment element face 3",
        *(line for key in names for line in head[key]),
        "end_header",
    ]
    path.write_bytes((newline.join(lines) + newline).encode() + b"".join(rows[key] for key in names) + tail)


def write_stl(
    path: Path, solid: Solid, *, binary: bool = True, header: bytes = b"", tail: bytes = b"", parts: int = 1, upper: bool = False,
    number: str = "%.9e", newline: str = "\n",
) -> None:  # fmt: skip
    """Write the triangles of a solid as an STL file of `parts` solids."""
    faces = np.array(solid.triangles)
    pieces = [solid.vertices[piece] for piece in np.array_split(faces, parts)]
    if binary:
        data = b""
        for piece in pieces:
            record = np.zeros(len(piece), [("n", "<f4", 3), ("c", "<f4", (3, 3)), ("a", "<u2")])
            record["c"] = piece
            data += header.ljust(80, b"\0")[:80] + struct.pack("<I", len(piece)) + record.tobytes()
        path.write_bytes(data + tail)
        return
    lines = []
    for index, piece in enumerate(pieces):
        lines.append(f"solid vertex {index} facet")
        for triangle in piece:
            lines += ["  facet normal 0 0 0", "    outer loop"]
            lines += ["      vertex " + " ".join(number % x for x in point) for point in triangle]
            lines += ["    endloop", "  endfacet"]
        lines.append(f"endsolid vertex {index}")
    text = newline.join(lines) + newline
    path.write_bytes((text.upper() if upper else text).encode() + tail)


def write_off(
    path: Path, solid: Solid, *, kind: str = "OFF", counts_first: bool = False, comments: bool = False, face_colors: bool = False,
    one_line: bool = False, blanks: bool = False, newline: str = "\n", edges: bool = True,
) -> None:  # fmt: skip
    """Write an OFF file; `kind` is its first word, whose letters say what a vertex has behind its position."""
    more = " 0 0 1" * ("N" in kind) + " 10 20 30 255" * ("C" in kind) + " 0.5 0.5" * ("ST" in kind)
    counts = f"{len(solid.vertices)} {len(solid.polygons)}" + (" 0" if edges else "")
    lines = [f"{kind} {counts}"] if counts_first else [kind, "# counts 1 2 3" if comments else "", counts]
    lines += [
        " ".join(repr(float(x)) for x in point) + more + (" # a vertex" if comments else "") for point in solid.vertices
    ]
    lines += [" ".join(map(str, [len(face), *face])) + (" 255 0 0" if face_colors else "") for face in solid.polygons]
    lines = [line for line in lines if line]
    path.write_bytes((" ".join(lines) if one_line else (newline * (2 if blanks else 1)).join(lines) + newline).encode())


class GltfFile:
    """A glTF file that is put together entry by entry."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.json: dict[str, Any] = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": []}]}

    def append(self, name: str, **entry: Any) -> int:
        """Append an entry to a list at the top, and return its number."""
        self.json.setdefault(name, []).append(entry)
        return len(self.json[name]) - 1

    def view(self, data: bytes, **entry: Any) -> int:
        self.data += bytes(-len(self.data) % 4)
        self.data += data
        return self.append(
            "bufferViews", buffer=0, byteOffset=len(self.data) - len(data), byteLength=len(data), **entry
        )

    def accessor(self, values: np.ndarray, component: int = FLOAT, *, kind: str | None = None, normalized: bool = False, padding: int = 0, sparse: bool = False) -> int:  # fmt: skip
        """Add numbers, as they are to be stored; `padding` bytes follow each element, as if others were interleaved."""
        stored = np.ascontiguousarray(values.reshape(len(values), -1), TYPES[component])
        kind = kind or {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}[stored.shape[1]]
        entry: dict[str, Any] = {"componentType": component, "count": len(stored), "type": kind}
        if normalized:
            entry["normalized"] = True
        if sparse:
            half = np.arange(0, len(stored), 2)
            base = stored.copy()
            base[half] = 0
            entry["bufferView"] = self.view(base.tobytes())
            entry["sparse"] = {
                "count": len(half),
                "indices": {"bufferView": self.view(half.astype("<u2").tobytes()), "componentType": 5123},
                "values": {"bufferView": self.view(stored[half].tobytes())},
            }
        else:
            rows = stored.view(np.uint8).reshape(len(stored), -1)
            width = rows.shape[1]
            padded = np.pad(rows, ((0, 0), (4, padding - 4))) if padding else rows
            entry["bufferView"] = self.view(padded.tobytes(), **({"byteStride": width + padding} if padding else {}))
            if padding:
                entry["byteOffset"] = 4
        return self.append("accessors", **entry)

    def node(self, *, root: bool = True, **entry: Any) -> int:
        number = self.append("nodes", **entry)
        if root:
            self.json["scenes"][0]["nodes"].append(number)
        return number

    def save(self, path: Path, kind: str = "glb") -> None:
        """Write it as "glb", with its buffer in the text ("base64"), or in a file beside it ("external")."""
        buffer: dict[str, Any] = {"byteLength": len(self.data)}
        if kind == "base64":
            buffer["uri"] = "data:application/octet-stream;base64," + base64.b64encode(self.data).decode()
        elif kind == "external":
            buffer["uri"] = path.stem + "%20data.bin"
            path.with_name(path.stem + " data.bin").write_bytes(self.data)
        text = json.dumps({**self.json, "buffers": [buffer]}).encode()
        if kind != "glb":
            path.write_bytes(text)
            return
        text += b" " * (-len(text) % 4)
        binary = bytes(self.data) + bytes(-len(self.data) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
