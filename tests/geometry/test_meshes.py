from __future__ import annotations

import json
import pickle
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from hiergen.geometry.meshes import MESH_SUFFIXES, MeshError, MeshLimits, load_mesh


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


@pytest.mark.parametrize("suffix", MESH_SUFFIXES)
def test_every_format_gives_the_same_surface(tmp_path: Path, suffix: str) -> None:
    original = trimesh.util.concatenate(
        [trimesh.creation.box(), trimesh.creation.icosphere(subdivisions=1, radius=2.0)]
    )
    original.apply_translation((100.0, 5.0, -3.0))
    original.export(tmp_path / f"thing{suffix}")
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
DATA = b"0 0 0\n1 0 0\n0 1 0\n"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", OBJ, "has the suffix '.txt', expected one of .glb, .obj, .off, .ply, .stl"),
        ("a.obj", b" \n", "is empty"),
        ("a.obj", b"PK\x03\x04rest", "is a zip archive; unpack it first"),
        ("a.glb", b"\x1f\x8brest", "is a gzip archive; unpack it first"),
        ("a.obj", b"\0" * 100, "is not text, as OBJ is"),
        ("a.obj", b"hello world\n", "holds no faces"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "is damaged"),
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
        ("a.glb", b"ply", "is not binary glTF"),
        ("a.glb", b"glTF", "has a damaged glTF header"),
        ("a.glb", _triangle_gltf()[:-20], "is truncated: its header says"),
        ("a.glb", b"glTF" + struct.pack("<I", 1) + _triangle_gltf()[8:], "is glTF 1, expected 2"),
        ("a.glb", _triangle_gltf(buffers=[{"byteLength": 36, "uri": "../secret.bin"}]), "refers to another file, '../secret.bin'"),
        ("a.glb", _triangle_gltf(extensionsRequired=["KHR_draco_mesh_compression"]), "is compressed with KHR_draco_mesh_compression"),
        ("a.glb", _triangle_gltf(accessors=[{"componentType": 5126, "count": 10**9, "type": "VEC3"}]), "claims 1,000,000,000 elements in glTF accessor 0, which has no data"),
        ("a.glb", _triangle_gltf(accessors=[{"bufferView": 0, "componentType": 5126, "count": 10**9, "type": "VEC3"}]), "claims 12,000,000,000 bytes in glTF accessor 0"),
        ("a.glb", _triangle_gltf(accessors=[{"bufferView": 0, "componentType": 5126, "count": -3, "type": "VEC3"}]), "has a glTF accessor 0 of -3 elements"),
        ("a.glb", _triangle_gltf(nodes=[{"mesh": 0, "children": [2]}, {"children": [2]}, {"mesh": 0}]), "has a glTF node with two parents"),
        ("a.glb", _triangle_gltf(meshes={"primitives": 3}), "has a damaged glTF header (TypeError"),
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
        mesh.export(file)
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
                result = load_mesh(file)
            except MeshError:
                refused += 1
                continue
            loaded += 1
            assert np.isfinite(result.vertices).all()
            assert len(result.faces) > 0
            assert result.faces.max() < len(result.vertices)
    assert loaded + refused == 80
    assert loaded > 3
    assert refused > 40
