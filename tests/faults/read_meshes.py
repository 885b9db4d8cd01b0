"""Write random solids in random formats and options, and read them: each comes back whole, or is refused by a sentence that names it.

    python tests/faults/read_meshes.py --count 1000

Volume, area, bounds and number of faces are known; what a file holds besides has to be warned of. Exit code 0 if nothing was wrong.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from mesh_writers import GltfFile, Solid, random_solid, rotation, write_obj, write_off, write_ply, write_stl

from hiergen.geometry.meshes import MeshError, load_mesh

#: Seconds that reading one file may take.
PATIENCE = 2.0


class Made:
    """What a file should give: a solid, or a refusal if `refused`; with a warning if `warned`."""

    def __init__(self, path: Path, solid: Solid, options: object, *, refused: bool = False, warned: bool = False, tolerance: float = 1e-6) -> None:  # fmt: skip
        self.path, self.solid, self.options = path, solid, options
        self.refused, self.warned, self.tolerance = refused, warned, tolerance


def make_obj(folder: Path, draws: random.Random) -> Made:
    flip = lambda: draws.random() < 0.4  # noqa: E731
    extra = draws.choice(["", "", "l 1 2\np 1"])
    options = {
        "relative": flip(), "textured": flip(), "interleaved": flip(), "tabs": flip(), "continued": flip(), "colors": flip(),
        "comments": flip(), "indent": draws.choice(["", "  ", "\t"]), "newline": draws.choice(["\n", "\r\n", "\r"]),
        "mark": draws.choice([b"", b"\xef\xbb\xbf"]), "extra": extra,
    }  # fmt: skip
    solid, path = random_solid(draws), folder / "a.obj"
    write_obj(path, solid, **options)
    return Made(path, solid, options, warned=bool(extra))


def make_ply(folder: Path, draws: random.Random) -> Made:
    form = draws.choice(["ascii", "binary_little_endian", "binary_big_endian"])
    strips = draws.random() < 0.3
    tail = draws.choice([b"", b"", b"\n", b"\0\0\0"] if form != "ascii" else [b"", b"\n\n", b" "])
    options = {
        "form": form, "tail": tail, "strips": strips, "extras": draws.random() < 0.4, "faces_first": draws.random() < 0.3,
        "count_type": draws.choice(["uchar", "char", "ushort", "short", "uint", "int", "float"]),
        "index_type": draws.choice(["int", "short"] if strips else ["int", "uint", "ushort", "short", "float"]),
        "name": draws.choice(["vertex_indices", "vertex_index"]), "coordinate": draws.choice(["float", "double"]),
        "newline": draws.choice(["\n", "\r\n"]),
    }  # fmt: skip
    solid, path = random_solid(draws, simple=strips), folder / "a.ply"
    write_ply(path, solid, **options)
    return Made(path, solid, options, warned=options["extras"], tolerance=1e-4)


def make_stl(folder: Path, draws: random.Random) -> Made:
    solid, path = random_solid(draws, simple=True), folder / "a.stl"
    binary = draws.random() < 0.5
    options = {
        "binary": binary, "parts": draws.randint(1, 3), "header": draws.choice([b"", b"solid body facet normal"]),
        "tail": draws.choice([b"", b"\n", b"\0" * 300, b"\r\n \n"] if binary else [b"", b"\n\n"]), "upper": draws.random() < 0.3,
        "number": draws.choice(["%.9e", "%.8E", "%.12g", "%+.9f"]), "newline": draws.choice(["\n", "\r\n", "\r"]),
    }  # fmt: skip
    write_stl(path, solid, **options)
    return Made(path, solid, options, tolerance=1e-3)


def make_off(folder: Path, draws: random.Random) -> Made:
    kind = draws.choice(["OFF", "OFF", "COFF", "NOFF", "CNOFF", "STOFF", "STCNOFF", "4OFF", "nOFF", "OFF BINARY"])
    one_line = draws.random() < 0.2
    options = {
        "kind": kind, "one_line": one_line, "comments": not one_line and draws.random() < 0.3, "face_colors": not one_line and draws.random() < 0.4,
        "counts_first": draws.random() < 0.3, "blanks": draws.random() < 0.3, "newline": draws.choice(["\n", "\r\n", "\r"]),
        "edges": one_line or draws.random() < 0.8,
    }  # fmt: skip
    solid, path = random_solid(draws), folder / "a.off"
    write_off(path, solid, **options)
    return Made(path, solid, options, refused=kind in ("4OFF", "nOFF", "OFF BINARY"))


def random_matrix(draws: random.Random) -> tuple[np.ndarray, dict[str, list[float]]]:
    """Return a matrix of a node, mirrored or not, and the entries that say it."""
    turn, offset = rotation(draws), [draws.uniform(-3, 3) for _ in range(3)]
    scale = [draws.choice([-1, 1]) * draws.uniform(0.5, 2)] * 3
    if draws.random() < 0.5:
        scale[draws.randrange(3)] *= -1.5
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn * scale, offset
    if draws.random() < 0.5:
        return matrix, {"matrix": matrix.T.ravel().tolist()}
    return matrix, {"translation": offset, "rotation": quaternion(turn), "scale": scale}


def quaternion(turn: np.ndarray) -> list[float]:
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(turn).as_quat().tolist()


def make_gltf(folder: Path, draws: random.Random) -> Made:
    """A solid below two nodes, or moved by a skin, or repeated by instances; its positions are stored in many ways."""
    kind = draws.choice(["glb", "glb", "base64", "external"])
    solid, path = random_solid(draws, simple=True), folder / ("a.glb" if kind == "glb" else "a.gltf")
    size, file = float(np.ptp(solid.vertices, axis=0).max()), GltfFile()
    outer, outer_entries = random_matrix(draws)
    inner, inner_entries = random_matrix(draws)
    how = draws.choice(["nodes", "nodes", "instances", "skin"])
    options = {
        "kind": kind,
        "how": how,
        "stored": draws.choice(["float", "padded", "sparse", "morphed", "short", "ushort"]),
    }
    options["mode"] = draws.choice(["indexed", "plain", "fans", "strips"])
    matrix = outer @ inner
    faces = solid.polygons
    if np.linalg.det(matrix) < 0:
        faces = [face[::-1] for face in faces]
    local = (np.c_[solid.vertices, np.ones(len(solid.vertices))] @ np.linalg.inv(matrix).T)[:, :3]
    stored, attributes = store_positions(file, local, options["stored"], draws, size)
    local_entries = {}
    if stored is not None:
        # Normalized positions lie in a cube of their own, below one more node.
        local_entries = {"translation": stored[0].tolist(), "scale": [stored[1]] * 3}
    if how == "skin":
        # Two joints that put every vertex to the same place, whatever their weights.
        inverse = np.eye(4)
        if stored is not None:
            inverse[:3, :3] *= stored[1]
            inverse[:3, 3] = stored[0]
        count = len(local)
        attributes["JOINTS_0"] = file.accessor(np.tile([0, 1, 0, 0], (count, 1)), 5121)
        attributes["WEIGHTS_0"] = file.accessor(np.tile([128, 127, 0, 0], (count, 1)), 5121, normalized=True)
    parts = primitives(file, faces, attributes, len(local), options["mode"], solid)
    if options["stored"] == "morphed":
        delta = file.accessor(np.full(local.shape, size))
        parts = [{**part, "targets": [{"POSITION": delta}]} for part in parts]
    warned = draws.random() < 0.2
    if warned:
        parts.append({"attributes": attributes, "mode": draws.choice([0, 1, 2, 3])})
    mesh = file.append("meshes", primitives=parts, **({"weights": [0.5]} if options["stored"] == "morphed" else {}))
    if how == "skin":
        joint = file.node(root=False, **inner_entries)
        file.node(children=[joint], **outer_entries)
        binds = file.accessor(np.stack([inverse.T.ravel()] * 2))
        skin = file.append("skins", joints=[joint, joint], inverseBindMatrices=binds)
        # A transform that a skinned mesh ignores.
        file.node(mesh=mesh, skin=skin, scale=[1, -50, 1], translation=[9, 9, 9])
    else:
        entries = {"mesh": mesh}
        if how == "instances":
            # The second instance stands beside the first, seen from outside of all nodes.
            step = np.linalg.inv(matrix)[:3, :3] @ [0, 3 * size, 0] / (stored[1] if stored is not None else 1)
            places = file.accessor(np.array([[0, 0, 0], step]))
            turns = file.accessor(np.array([[0, 0, 0, 127]] * 2), 5120, normalized=True)
            entries["extensions"] = {
                "EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": places, "ROTATION": turns}}
            }
            file.json["extensionsUsed"] = ["EXT_mesh_gpu_instancing"]
            solid = Solid(
                np.concatenate([solid.vertices, solid.vertices + np.array([0, 3 * size, 0])]),
                solid.polygons * 2,
                2 * solid.volume,
                2 * solid.area,
            )
        leaf = file.node(root=False, **local_entries, **entries)
        middle = file.node(root=False, children=[leaf], **inner_entries)
        file.node(children=[middle], **outer_entries)
    required = draws.choice([None] * 9 + ["KHR_draco_mesh_compression", "EXT_meshopt_compression", "VENDOR_shape"])
    if required or options["stored"] in ("short", "ushort"):
        file.json["extensionsRequired"] = [required or "KHR_mesh_quantization"]
    if draws.random() < 0.2:
        file.json["scenes"].append({"nodes": [file.node(root=False, mesh=mesh)]})
        warned = True
    file.save(path, kind)
    return Made(
        path, solid, {**options, "required": required}, refused=required is not None, warned=warned, tolerance=5e-3
    )


def store_positions(
    file: GltfFile, local: np.ndarray, stored: str, draws: random.Random, size: float
) -> tuple[tuple[np.ndarray, float] | None, dict[str, int]]:
    """Add positions; return the offset and scale with which they must be read, if any, and the attributes."""
    if stored in ("short", "ushort"):
        low, width = local.min(axis=0), float(np.ptp(local, axis=0).max())
        component, most = (5122, 32767) if stored == "short" else (5123, 65535)
        values = np.rint((local - low) / width * most)
        return (low, width), {
            "POSITION": file.accessor(values, component, normalized=True, padding=draws.choice([0, 8]))
        }
    if stored == "morphed":
        # The weight of the mesh adds half of its one target, which is `size` everywhere.
        return None, {"POSITION": file.accessor(local - size / 2)}
    return None, {"POSITION": file.accessor(local, padding=16 if stored == "padded" else 0, sparse=stored == "sparse")}


def primitives(
    file: GltfFile, faces: list[list[int]], attributes: dict[str, int], count: int, mode: str, solid: Solid
) -> list[dict[str, object]]:
    if mode in ("fans", "strips"):
        # A quad a b c d is the strip a b d c.
        orders = [face if mode == "fans" or len(face) < 4 else [face[0], face[1], face[3], face[2]] for face in faces]
        return [
            {
                "attributes": attributes,
                "mode": 6 if mode == "fans" else 5,
                "indices": file.accessor(np.array(order), 5123),
            }
            for order in orders
        ]
    order = np.array(Solid(solid.vertices, faces, 0, 0).triangles).ravel()
    component = 5121 if count < 255 else 5123
    return [{"attributes": attributes, "indices": file.accessor(order, component)}]


MAKERS = {"obj": make_obj, "ply": make_ply, "stl": make_stl, "off": make_off, "gltf": make_gltf}


def judge(made: Made) -> tuple[str, str]:
    """Return "right", "refused" or "wrong", and why it is wrong."""
    started = time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            mesh = load_mesh(made.path)
    except MeshError as error:
        named = made.path.name in str(error)
        return ("refused", "") if made.refused and named else ("wrong", str(error))
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {error}"
    if time.perf_counter() - started > PATIENCE:
        return "wrong", "took too long"
    if made.refused:
        return "wrong", "was read"
    said = [str(one.message) for one in caught]
    if bool(said) != made.warned or any(made.path.name not in text for text in said):
        return "wrong", f"warned of {said}, expected {'some' if made.warned else 'none'}"
    solid, size = made.solid, float(np.ptp(made.solid.vertices, axis=0).max())
    bounds = np.stack([solid.vertices.min(axis=0), solid.vertices.max(axis=0)])
    found = {
        "faces": len(mesh.faces) == solid.num_triangles,
        "watertight": mesh.is_watertight,
        "volume": abs(mesh.volume / solid.volume - 1) < made.tolerance,
        "area": abs(mesh.area / solid.area - 1) < made.tolerance,
        "bounds": np.abs(mesh.bounds - bounds).max() < made.tolerance * size,
    }
    bad = [name for name, is_right in found.items() if not is_right]
    numbers = f"{len(mesh.faces)} of {solid.num_triangles} faces, volume {mesh.volume:.6g} of {solid.volume:.6g}, area {mesh.area:.6g} of {solid.area:.6g}"
    return ("wrong", f"{', '.join(bad)}: {numbers}") if bad else ("right", "")


def run(count: int, seed: int) -> dict[str, dict[str, int]]:
    """Return by format how many files were read right, refused as they should be, and wrong; the last are printed."""
    found: dict[str, collections.Counter[str]] = {
        kind: collections.Counter(right=0, refused=0, wrong=0) for kind in MAKERS
    }
    with tempfile.TemporaryDirectory() as folder:
        for trial in range(count):
            kind = list(MAKERS)[trial % len(MAKERS)]
            made = MAKERS[kind](Path(folder), random.Random(f"{seed} {trial}"))
            outcome, problem = judge(made)
            found[kind][outcome] += 1
            if outcome == "wrong":
                print(f"{kind} {trial}: {problem[:300]} {made.options}", file=sys.stderr)
    return {kind: dict(counts) for kind, counts in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="files to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = run(options.count, options.seed)
    print(json.dumps(found, indent=2))
    return int(any(counts["wrong"] for counts in found.values()))


if __name__ == "__main__":
    sys.exit(main())
