from __future__ import annotations

import json
import pickle
import struct
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from mesh_writers import GltfFile

from hiergen.data.shapes.building import ShapeJob, source_digest
from hiergen.geometry.meshes import MESH_SUFFIXES, MeshError, MeshLimits, external_buffers, load_mesh


def _gltf(document: dict[str, Any], payload: bytes = b"") -> bytes:
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    if payload:
        payload += b"\0" * (-len(payload) % 4)
        chunks += struct.pack("<I4s", len(payload), b"BIN\0") + payload
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _triangle_gltf(**changes: Any) -> bytes:
    """One triangle; `changes` replace top-level entries."""
    positions = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32).tobytes()
    accessor = {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3", "min": [0, 0, 0], "max": [1, 1, 0]}
    document = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "scene": 0,
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "accessors": [accessor],
        "bufferViews": [{"buffer": 0, "byteOffset": 0, "byteLength": 36}],
        "buffers": [{"byteLength": 36}],
    }
    return _gltf({**document, **changes}, positions)


def _export(mesh: trimesh.Trimesh, file: Path) -> None:
    if file.suffix != ".gltf":
        mesh.export(file)
        return
    # The library leaves the file open.
    made = GltfFile()
    part = {
        "attributes": {"POSITION": made.accessor(mesh.vertices)},
        "indices": made.accessor(mesh.faces.ravel(), 5125),
    }
    made.node(mesh=made.append("meshes", primitives=[part]))
    made.save(file, "base64")


@pytest.mark.parametrize("suffix", MESH_SUFFIXES)
def test_every_format_gives_the_same_surface(tmp_path: Path, suffix: str) -> None:
    original = trimesh.util.concatenate(
        [trimesh.creation.box(), trimesh.creation.icosphere(subdivisions=1, radius=2.0)]
    )
    original.apply_translation((100.0, 5.0, -3.0))
    _export(original, tmp_path / f"thing{suffix}")
    (tmp_path / f"thing{suffix}").rename(tmp_path / f"THING{suffix.upper()}")
    mesh = load_mesh(tmp_path / f"THING{suffix.upper()}")
    assert len(mesh.faces) == len(original.faces)
    assert mesh.is_watertight
    np.testing.assert_allclose(mesh.bounds, original.bounds, atol=1e-4)
    assert mesh.volume == pytest.approx(original.volume, rel=1e-4)


def test_parts_of_a_scene_become_one_mesh_in_place(tmp_path: Path) -> None:
    scene = trimesh.Scene()
    for x in (0.0, 3.0):
        scene.add_geometry(trimesh.creation.box(), transform=trimesh.transformations.translation_matrix((x, 0, 0)))
    scene.export(tmp_path / "two.glb")
    mesh = load_mesh(tmp_path / "two.glb")
    assert len(mesh.faces) == 24
    np.testing.assert_allclose(mesh.bounds, [[-0.5, -0.5, -0.5], [3.5, 0.5, 0.5]])


def test_empty_and_repeated_faces_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "a.obj"
    file.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 0\nf 1 2 3\nf 4 2 3\nf 1 4 2\n")
    mesh = load_mesh(file)
    assert (len(mesh.vertices), len(mesh.faces)) == (3, 1)


OBJ = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
PLY = b"ply\nformat ascii 1.0\nelement vertex %d\nproperty float x\nproperty float y\nproperty float z\nelement face %d\nproperty list uchar int vertex_indices\nend_header\n"
STL = b"solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\nendsolid a\n"
DATA = b"0 0 0\n1 0 0\n0 1 0\n"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", OBJ, "has the suffix '.txt', expected one of .glb, .gltf, .obj, .off, .ply, .stl"),
        ("a.obj", b" \n", "is empty"),
        ("a.obj", b"PK\x03\x04rest", "is a zip archive; unpack it first"),
        ("a.glb", b"\x1f\x8brest", "is a gzip archive; unpack it first"),
        ("a.obj", b"v\0 " * 100, "is not text, or damaged: it has bytes of zero"),
        ("a.obj", b"hello world\n", "holds no faces"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "has a face that names vertex 9 of 3"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 0/7 2\n", "has a face that names vertex 0; OBJ counts from 1"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "has no area"),
        ("a.obj", b"v 0 0 0\nv 0 0 0\nv 0 0 0\nf 1 2 3\n", "is a single point"),
        ("a.obj", b"v 0 0 0\nv 1e30 0 0\nv 0 1 0\nf 1 2 3\n", "has coordinates up to 1e+30, expected at most 1e+12"),
        ("a.ply", b"plyx", "has no PLY header"),
        ("a.ply", PLY.replace(b"element face %d", b"element edge %d") % (3, 1), "declares no face element"),
        ("a.ply", PLY % (3, 0) + DATA, "holds no faces"),
        ("a.ply", PLY % (3, 1) + DATA + b"3 0 1 77\n", "has a face that names vertex 77 of 3"),
        ("a.ply", PLY % (3, 10**12) + DATA, "has 1,000,000,000,000 faces, at most 2,000,000 are read"),
        ("a.ply", PLY % (3, 1) + b"0 0 0\nnan 0 0\n0 1 0\n3 0 1 2\n", "has coordinates that are not finite"),
        ("a.stl", b"\0" * 80 + b"\xff\0\0\0" + b"\0" * 50, "is not STL, or truncated: its header says 255 faces, it has 134 bytes"),
        ("a.stl", b"\0" * 84, "holds no faces"),
        ("a.off", b"OFFICE\n", "has no OFF header"),
        ("a.off", b"OFF\n99999999999 1 0\n", "has 99,999,999,999 vertices, at most 4,000,000 are read"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 -4\n", "has a face that names vertex -4 of 3"),
        ("a.obj", b"v 0 0 0\nf -1 -2 -3\nv 1 0 0\nv 0 1 0\n", "has a face that names vertex -2 of 1"),
        ("a.obj", b"v 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "has a vertex of 2 coordinates, expected 3"),
        ("a.obj", b"v 0 0 0,5\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "has '0,5' where a number is expected"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2.5 3\n", "has 2.5 where a whole number is expected"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 /2 3\n", "has "),
        ("a.ply", PLY.replace(b"float y", b"float q") % (3, 1) + DATA + b"3 0 1 2\n", "has vertices without y"),
        ("a.ply", PLY.replace(b"vertex_indices", b"other") % (3, 1) + DATA + b"3 0 1 2\n", "has a face element without vertex_indices"),
        ("a.ply", PLY.replace(b"ascii", b"binary_middle") % (3, 1) + DATA, "has the PLY format 'binary_middle', expected ascii"),
        ("a.ply", PLY.replace(b"uchar", b"quark") % (3, 1) + DATA, "has a damaged PLY header: 'property list quark int vertex_indices'"),
        ("a.ply", PLY % (3, 1) + DATA + b"4 0 1 2\n", "is truncated"),
        ("a.ply", PLY % (3, 2) + DATA + b"3 0 1 2\n", "is truncated"),
        ("a.ply", PLY % (300, 2) + DATA + b"3 0 1 2\n", "is truncated: it has no room for its 300 elements 'vertex'"),
        ("a.ply", PLY % (3, 2) + DATA + b"3 0 1 2\n-3 0 1 2\n", "has a list of -3.0 values"),
        ("a.ply", PLY % (3, 1) + DATA + b"3 0 1 2.5\n", "has 2.5 where a whole number is expected"),
        ("a.stl", b"solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\n", "holds no faces"),
        ("a.stl", STL * 2 + STL[:-25], "is truncated: a facet does not end"),
        ("a.stl", STL.replace(b"endloop", b""), "is truncated: a loop does not end"),
        ("a.stl", STL.replace(b"1 0 0", b"1 0 O"), "has 'o' where a number is expected"),
        ("a.off", b"OFF BINARY\n\0\0", "is binary OFF; store it as text"),
        ("a.off", b"4OFF\n3 1 0\n", "is 4OFF, whose vertices are not of three dimensions"),
        ("a.off", b"nOFF\n3\n3 1 0\n", "is nOFF, whose vertices are not of three dimensions"),
        ("a.off", b"OFF\n3\n", "has no OFF header"),
        ("a.off", b"OFF\n-3 1 0\n", "has -3 as a number of elements"),
        ("a.off", b"OFF\n3 1 0\n" + DATA, "is truncated or damaged: 3 vertices and 1 faces are not all there"),
        ("a.off", b"OFF\n3 1 0\n" + DATA + b"3 0 1 3\n", "has a face that names vertex 3 of 3"),
        ("a.off", b"OFF\n3 1 0\n" + DATA + b"3 0 1 x\n", "has 'x' where a number is expected"),
        ("a.glb", b"ply", "has a damaged glTF description (JSONDecodeError"),
        ("a.glb", b"glTF", "has a damaged glTF description (error"),
        ("a.glb", _triangle_gltf()[:-20], "is truncated: its header says"),
        ("a.glb", b"glTF" + struct.pack("<I", 1) + _triangle_gltf()[8:], "is glTF 1, expected 2"),
        ("a.glb", _triangle_gltf(buffers=[{"byteLength": 36, "uri": "../secret.bin"}]), "refers to another file, '../secret.bin'"),
        ("a.glb", _triangle_gltf(extensionsRequired=["KHR_draco_mesh_compression"]), "is compressed with KHR_draco_mesh_compression"),
        ("a.glb", _triangle_gltf(accessors=[{"componentType": 5126, "count": 10**9, "type": "VEC3"}]), "claims 1,000,000,000 elements in glTF accessor 0, which has no data"),
        ("a.glb", _triangle_gltf(accessors=[{"bufferView": 0, "componentType": 5126, "count": 10**9, "type": "VEC3"}]), "claims 12,000,000,000 bytes in glTF accessor 0"),
        ("a.glb", _triangle_gltf(accessors=[{"bufferView": 0, "componentType": 5126, "count": -3, "type": "VEC3"}]), "has a glTF accessor 0 of -3 elements"),
        ("a.glb", _triangle_gltf(nodes=[{"mesh": 0, "children": [2]}, {"children": [2]}, {"mesh": 0}]), "has a glTF node with two parents"),
        ("a.glb", _triangle_gltf(meshes={"primitives": 3}), "has a damaged glTF description ('meshes' is no list)"),
        ("a.glb", _triangle_gltf(nodes=[{}]), "holds no faces"),
    ],
)  # fmt: skip
def test_bad_files_are_named_with_the_reason(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    started = time.monotonic()
    with pytest.raises(MeshError) as info:
        load_mesh(file)
    assert info.value.reason.startswith(reason)
    assert str(info.value) == f"mesh {str(file)!r} {info.value.reason}"
    assert info.value.path == str(file)
    # What asks for gigabytes is refused before it gets them.
    assert time.monotonic() - started < 5


def test_zeros_that_are_no_vertices_are_let_pass(tmp_path: Path) -> None:
    text = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1//0 2 3 # 0 more\n"
    (tmp_path / "a.obj").write_text(text + "v 9 9 9\n" * 7 + "f 1 3 10\n")
    assert len(load_mesh(tmp_path / "a.obj").faces) == 2


def test_padding_and_unusual_breaks_mean_nothing(tmp_path: Path) -> None:
    for name, content in (
        ("a.obj", OBJ + b"\0\0\x1a\0"),
        ("a.obj", OBJ.replace(b"f ", b"f\\\n")),
        ("a.obj", OBJ.replace(b"v ", b"v\x0b\x0c ")),
        ("a.stl", b"\n " + STL + b"\0\0\0\x1a"),
        ("a.stl", b"\xef\xbb\xbf" + STL),
        ("a.off", b"\xef\xbb\xbf# OFF\nOFF3 1\n" + DATA + b"3 0 1 2\n\0"),
        ("a.off", b"OFF\n3 1 0\n0\n" + DATA[2:] + b"3 0 1\n2\n"),
        ("a.ply", b"\xef\xbb\xbf" + (PLY % (3, 1)).replace(b" ", b"\t") + DATA + b"3.0 0 1 2"),
    ):
        (tmp_path / name).write_bytes(content)
        assert len(load_mesh(tmp_path / name).faces) == 1


def test_limits_are_kept(tmp_path: Path) -> None:
    trimesh.creation.icosphere(subdivisions=2).export(tmp_path / "ball.ply")
    assert len(load_mesh(tmp_path / "ball.ply", MeshLimits(max_faces=320)).faces) == 320
    for limits, reason in (
        (MeshLimits(max_bytes=100), "bytes, at most 100 are read"),
        (MeshLimits(max_faces=319), "has 320 faces, at most 319 are read"),
        (MeshLimits(max_vertices=161), "has 162 vertices, at most 161 are read"),
    ):
        with pytest.raises(MeshError, match=reason):
            load_mesh(tmp_path / "ball.ply", limits)
    many = _triangle_gltf(nodes=[{"mesh": 0}] * 50, scenes=[{"nodes": list(range(50))}])
    (tmp_path / "many.glb").write_bytes(many)
    with pytest.raises(MeshError, match="has 50 faces, at most 49 are read"):
        load_mesh(tmp_path / "many.glb", MeshLimits(max_faces=49))
    # Polygons count as the triangles they are cut into.
    (tmp_path / "quad.obj").write_bytes(b"v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3 4\n")
    with pytest.raises(MeshError, match="has 2 faces, at most 1 are read"):
        load_mesh(tmp_path / "quad.obj", MeshLimits(max_faces=1))


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="cannot be read"):
        load_mesh(tmp_path / "absent.obj")
    (tmp_path / "folder.obj").mkdir()
    with pytest.raises(MeshError, match="is not a regular file"):
        load_mesh(tmp_path / "folder.obj")


def test_no_other_file_is_opened(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "secret.mtl").write_text("newmtl a\nmap_Kd secret.png\n")
    (tmp_path / "inner" / "a.obj").write_bytes(b"mtllib ../secret.mtl\nusemtl a\n" + OBJ)
    assert len(load_mesh(tmp_path / "inner" / "a.obj").faces) == 1


def test_errors_survive_being_sent_between_processes() -> None:
    error = pickle.loads(pickle.dumps(MeshError("a/b.obj", "is empty")))
    assert (error.path, error.reason, str(error)) == ("a/b.obj", "is empty", "mesh 'a/b.obj' is empty")


def test_a_zip_with_a_mesh_suffix_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.obj", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.obj", OBJ * 10_000)
    with pytest.raises(MeshError, match="is a zip archive"):
        load_mesh(tmp_path / "bomb.obj")


def test_mutated_files_load_or_raise_the_one_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mesh = trimesh.creation.icosphere(subdivisions=1)
    loaded = refused = 0
    for suffix in MESH_SUFFIXES:
        file = tmp_path / f"a{suffix}"
        _export(mesh, file)
        original = file.read_bytes()
        for kind in range(16):
            data = bytearray(original)
            if kind % 4 == 0:
                del data[rng.integers(len(data)) :]
            elif kind % 4 == 1:
                data[int(rng.integers(len(data)))] = int(rng.integers(256))
            elif kind % 4 == 2:
                at = int(rng.integers(len(data)))
                data[at:at] = rng.bytes(int(rng.integers(1, 100)))
            else:
                for at in rng.integers(min(len(data), 400), size=3):
                    data[at] = int(rng.integers(32, 127))
            file.write_bytes(data)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    result = load_mesh(file)
            except MeshError:
                refused += 1
                continue
            loaded += 1
            assert np.isfinite(result.vertices).all()
            assert len(result.faces) > 0
            assert result.faces.max() < len(result.vertices)
    assert loaded + refused == 96
    assert loaded > 3
    assert refused > 40


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.obj", OBJ + b"p 1\nl 1 2\nl 2 3\n", "2 statements of lines, 1 statements of points"),
        ("a.obj", OBJ + b"f 1 2\ncurv 0 1 1 2\n<html>\n", "1 lines that OBJ does not know, 1 statements of curves, 1 faces of fewer than three corners"),
        ("a.ply", PLY % (3, 2) + DATA + b"3 0 1 2\n2 0 1\n", "1 faces of fewer than three corners"),
        ("a.ply", PLY % (3, 1) + DATA + b"3 0 1 2\n5 6\n", "2 numbers behind its end"),
        ("a.ply", PLY % (3, 1) + DATA + b"3 0 1 2\nend\n", "what follows its numbers: it has 'end' where a number is expected"),
        ("a.stl", STL.replace(b"endsolid a", b""), "whatever followed: its last solid does not end"),
        ("a.stl", b" " * 80 + b"\1\0\0\0" + b"".join(struct.pack("<f", x) for x in (0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0)) + b"\0\0" + b"more", "4 bytes behind its end"),
        ("a.off", b"OFF\n3 1 0\n" + DATA + b"3 0 1 2\nmore\nlines\n", "2 lines behind its end"),
    ],
)  # fmt: skip
def test_what_is_left_out_is_told(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.warns(UserWarning, match="also holds") as caught:
        assert len(load_mesh(tmp_path / name).faces) == 1
    assert [str(one.message) for one in caught] == [f"mesh {str(tmp_path / name)!r} also holds {said}: not read"]


def test_large_files_are_read_within_seconds(tmp_path: Path) -> None:
    ball = trimesh.creation.icosphere(subdivisions=6)
    quads = np.concatenate([ball.faces, ball.faces[:, :1]], axis=1)
    for name in ("a.obj", "a.ply", "a.stl", "a.off", "a.glb"):
        ball.export(tmp_path / name)
    lines = [f"v {x} {y} {z}" for x, y, z in ball.vertices.tolist()]
    # Quads with a corner twice go the way of polygons that are not convex; one in ten is enough.
    lines += ["f " + " ".join(map(str, face)) for face in (quads[::10] + 1).tolist()]
    (tmp_path / "quads.obj").write_text("\n".join(lines))
    for name in ("a.obj", "a.ply", "a.stl", "a.off", "a.glb", "quads.obj"):
        started = time.process_time()
        assert len(load_mesh(tmp_path / name).faces) == (8192 if name == "quads.obj" else 81920)
        assert time.process_time() - started < 5


def test_the_digest_of_a_file_covers_its_buffers(tmp_path: Path) -> None:
    made = GltfFile()
    made.node(mesh=made.append("meshes", primitives=[{"attributes": {"POSITION": made.accessor(np.eye(3))}}]))
    made.save(tmp_path / "a.gltf", "external")
    assert external_buffers(tmp_path / "a.gltf") == [tmp_path / "a data.bin"]
    job = ShapeJob("a", "", "a", str(tmp_path / "a.gltf"))
    before = source_digest(job)
    (tmp_path / "a data.bin").write_bytes(bytes(36))
    assert source_digest(job) != before
    (tmp_path / "b.gltf").write_bytes(b"{")
    assert external_buffers(tmp_path / "b.gltf") == []
    assert external_buffers(tmp_path / "a.obj") == []
