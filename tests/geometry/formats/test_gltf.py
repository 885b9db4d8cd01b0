from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from mesh_writers import GltfFile, cube

from hiergen.geometry.meshes import MeshError, MeshLimits, load_mesh

CUBE = cube()
FACES = np.array(CUBE.triangles)


def cube_file(positions: dict[str, Any] | None = None, **part: Any) -> tuple[GltfFile, dict[str, Any]]:
    """Return a file that holds a cube of 1 from 0 as an indexed primitive, and the primitive."""
    file = GltfFile()
    positions = {"values": CUBE.vertices, **(positions or {})}
    primitive = {"attributes": {"POSITION": file.accessor(positions.pop("values"), **positions)}, "indices": file.accessor(FACES.ravel(), 5121), **part}  # fmt: skip
    return file, primitive


def load(file: GltfFile, folder: Path, kind: str = "glb", **options: Any) -> trimesh.Trimesh:
    path = folder / ("a.glb" if kind == "glb" else "a.gltf")
    file.save(path, kind)
    return load_mesh(path, **options)


def check_cube(
    mesh: trimesh.Trimesh, low: tuple[float, ...] = (0, 0, 0), high: tuple[float, ...] = (1, 1, 1), count: int = 1
) -> None:
    size = np.subtract(high, low)
    assert len(mesh.faces) == 12 * count
    assert mesh.is_watertight
    np.testing.assert_allclose(mesh.bounds, [low, high], atol=1e-4)
    if count == 1:
        assert mesh.volume == pytest.approx(float(np.prod(size)), rel=1e-3)


@pytest.mark.parametrize("kind", ["glb", "base64", "external"])
def test_buffers_inside_and_beside(tmp_path: Path, kind: str) -> None:
    file, part = cube_file()
    file.node(mesh=file.append("meshes", primitives=[part]))
    check_cube(load(file, tmp_path, kind))


@pytest.mark.parametrize("component", [5121, 5123, 5125])
def test_indices_of_every_type(tmp_path: Path, component: int) -> None:
    file, part = cube_file()
    part["indices"] = file.accessor(FACES.ravel(), component)
    file.node(mesh=file.append("meshes", primitives=[part]))
    check_cube(load(file, tmp_path))


@pytest.mark.parametrize(
    ("positions", "node"),
    [
        ({"padding": 20}, {}),
        ({"sparse": True}, {}),
        ({"values": CUBE.vertices * 127, "component": 5120, "normalized": True, "padding": 5}, {}),
        ({"values": CUBE.vertices * 255, "component": 5121, "normalized": True, "padding": 5}, {}),
        ({"values": CUBE.vertices * 32767, "component": 5122, "normalized": True}, {}),
        ({"values": CUBE.vertices * 65535, "component": 5123, "normalized": True}, {}),
        ({"values": CUBE.vertices * 1000, "component": 5122}, {"scale": [0.001] * 3}),
        ({"values": CUBE.vertices * 200, "component": 5121}, {"scale": [0.005] * 3}),
        ({"values": (CUBE.vertices * 2 - 1) * 127, "component": 5120, "normalized": True}, {"scale": [0.5] * 3, "translation": [0.5] * 3}),
    ],
)  # fmt: skip
def test_positions_of_every_type(tmp_path: Path, positions: dict[str, Any], node: dict[str, Any]) -> None:
    file, part = cube_file(positions)
    file.json["extensionsRequired"] = ["KHR_mesh_quantization"]
    file.node(mesh=file.append("meshes", primitives=[part]), **node)
    check_cube(load(file, tmp_path))


def test_triangles_strips_and_fans(tmp_path: Path) -> None:
    for mode in (4, 5, 6):
        file = GltfFile()
        points = {4: CUBE.vertices[FACES.ravel()]}.get(mode, CUBE.vertices)
        attributes = {"POSITION": file.accessor(points)}
        orders = [[a, b, d, c] if mode == 5 else [a, b, c, d] for a, b, c, d in CUBE.polygons]
        parts = [
            {"attributes": attributes, "mode": mode, "indices": file.accessor(np.array(order), 5125)}
            for order in orders
        ]
        file.node(mesh=file.append("meshes", primitives=[{"attributes": attributes}] if mode == 4 else parts))
        check_cube(load(file, tmp_path))
    file = GltfFile()
    zigzag = np.array([[k // 2, k % 2, 0.1 * k] for k in range(7)])
    file.node(mesh=file.append("meshes", primitives=[{"attributes": {"POSITION": file.accessor(zigzag)}, "mode": 5}]))
    mesh = load(file, tmp_path)
    assert len(mesh.faces) == 5
    assert (mesh.face_normals[:, 2] < 0).all()


def test_nodes_move_turn_scale_and_mirror(tmp_path: Path) -> None:
    file, part = cube_file()
    mesh = file.append("meshes", primitives=[part])
    # A quarter turn about z takes x to y and y to -x; then mirrored in x.
    leaf = file.node(root=False, mesh=mesh, scale=[1, 2, 3], rotation=[0, 0, 0.5**0.5, 0.5**0.5], translation=[0, 5, 0])
    file.node(children=[leaf], matrix=[-2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0, 0, 1])
    found = load(file, tmp_path)
    check_cube(found, (1, 5, 0), (5, 6, 3))
    assert found.volume > 0


def test_the_default_scene_counts_and_others_are_told(tmp_path: Path) -> None:
    file, part = cube_file()
    mesh = file.append("meshes", primitives=[part])
    file.node(mesh=mesh, translation=[7, 0, 0])
    file.json["scenes"].append({"nodes": [file.node(root=False, mesh=mesh)]})
    file.json["scene"] = 1
    with pytest.warns(UserWarning, match=r"a\.glb' also holds 1 meshes of nodes outside its default scene: not read"):
        check_cube(load(file, tmp_path))
    del file.json["scenes"], file.json["scene"]
    check_cube(load(file, tmp_path), (0, 0, 0), (8, 1, 1), count=2)


@pytest.mark.parametrize(("mode", "name"), [(0, "points"), (1, "lines"), (2, "lines"), (3, "lines")])
def test_points_and_lines_are_left_out_and_told(tmp_path: Path, mode: int, name: str) -> None:
    file, part = cube_file()
    file.node(mesh=file.append("meshes", primitives=[part, {**part, "mode": mode}]))
    with pytest.warns(UserWarning, match=f"also holds 1 primitives of {name}: not read"):
        check_cube(load(file, tmp_path))


def test_invisible_nodes_and_unknown_extensions_are_told(tmp_path: Path) -> None:
    file, part = cube_file()
    mesh = file.append("meshes", primitives=[part])
    child = file.node(root=False, mesh=mesh, translation=[9, 0, 0])
    file.node(children=[child], extensions={"KHR_node_visibility": {"visible": False}})
    file.node(mesh=mesh, extensions={"VENDOR_bend": {}, "KHR_lights_punctual": {"light": 0}})
    with pytest.warns(
        UserWarning, match="also holds what the extension VENDOR_bend says, 1 meshes of invisible nodes: not read"
    ):
        check_cube(load(file, tmp_path))


def test_instances(tmp_path: Path) -> None:
    file, part = cube_file()
    attributes = {
        "TRANSLATION": file.accessor(np.array([[0, 0, 0], [4.0, 0, 0], [0, 9, 0]])),
        "ROTATION": file.accessor(np.array([[0, 0, 0, 127], [0, 0, 90, 90], [0, 0, 0, 127]]), 5120, normalized=True),
        "SCALE": file.accessor(np.array([[1, 1, 1], [1.0, 2, 1], [-1, 1, 1]])),
    }
    mesh = file.append("meshes", primitives=[part])
    file.node(mesh=mesh, extensions={"EXT_mesh_gpu_instancing": {"attributes": attributes}}, translation=[0, 0, 1])
    found = load(file, tmp_path)
    check_cube(found, (-1, 0, 1), (4, 10, 2), count=3)
    assert found.volume == pytest.approx(1 + 2 + 1)
    with pytest.raises(MeshError, match="has 36 faces, at most 35 are read"):
        load(file, tmp_path, limits=MeshLimits(max_faces=35))
    attributes["SCALE"] = file.accessor(np.ones((2, 3)))
    with pytest.raises(MeshError, match=r"has instances of \[2, 3\] translations, rotations and scales"):
        load(file, tmp_path)


def test_morph_targets_by_their_weights(tmp_path: Path) -> None:
    file, part = cube_file()
    part["targets"] = [
        {"POSITION": file.accessor(CUBE.vertices * [2, 0, 0])},
        {"POSITION": file.accessor(CUBE.vertices * [0, 0, 5.0])},
    ]
    mesh = file.append("meshes", primitives=[part], weights=[0.5, 0])
    file.node(mesh=mesh)
    check_cube(load(file, tmp_path), high=(2, 1, 1))
    file.json["nodes"][0]["weights"] = [0, 1]
    check_cube(load(file, tmp_path), high=(1, 1, 6))


@pytest.mark.parametrize("weights", [5126, 5121, 5123])
def test_skins_in_their_pose_of_rest(tmp_path: Path, weights: int) -> None:
    file, part = cube_file()
    most = {5126: 1.0, 5121: 255, 5123: 65535}[weights]
    above = CUBE.vertices[:, 2] > 0.5
    # What is above follows the second joint, in a second set of four.
    joints = np.tile([0, 1, 0, 0], (8, 1))
    part["attributes"]["JOINTS_0"] = file.accessor(joints, 5121)
    part["attributes"]["WEIGHTS_0"] = file.accessor(
        np.where(above[:, None], 0, [[most, 0, 0, 0]]), weights, normalized=weights != 5126
    )
    part["attributes"]["JOINTS_1"] = file.accessor(joints, 5123)
    part["attributes"]["WEIGHTS_1"] = file.accessor(
        np.where(above[:, None], [[0, most, 0, 0]], 0), weights, normalized=weights != 5126
    )
    second = file.node(root=False, translation=[0, 0, 2])
    first = file.node(children=[second], scale=[1, 1, 3], translation=[10, 0, 0])
    binds = np.stack([np.eye(4), np.eye(4)])
    binds[1, :3, 3] = [0, 0, -1]
    skin = file.append(
        "skins", joints=[first, second], inverseBindMatrices=file.accessor(binds.transpose(0, 2, 1).reshape(2, 16))
    )
    file.node(mesh=file.append("meshes", primitives=[part]), skin=skin, scale=[100, -1, 1], translation=[0, 50, 0])
    # Below z is 3 * 0; above 3 * (2 + 1 - 1).
    check_cube(load(file, tmp_path), (10, 0, 0), (11, 1, 6))
    del file.json["skins"][0]["inverseBindMatrices"]
    check_cube(load(file, tmp_path), (10, 0, 0), (11, 1, 9))


def test_a_skin_that_mirrors_turns_the_faces(tmp_path: Path) -> None:
    file, part = cube_file()
    part["attributes"] |= {
        "JOINTS_0": file.accessor(np.zeros((8, 4)), 5121),
        "WEIGHTS_0": file.accessor(np.zeros((8, 4))),
    }
    skin = file.append("skins", joints=[file.node(scale=[-1, 1, 1])])
    file.node(mesh=file.append("meshes", primitives=[part]), skin=skin)
    found = load(file, tmp_path)
    check_cube(found, (-1, 0, 0), (0, 1, 1))
    assert found.volume > 0


def test_two_skins_of_one_mesh(tmp_path: Path) -> None:
    file, part = cube_file()
    part["attributes"] |= {
        "JOINTS_0": file.accessor(np.zeros((8, 4)), 5121),
        "WEIGHTS_0": file.accessor(np.tile([1.0, 0, 0, 0], (8, 1))),
    }
    mesh = file.append("meshes", primitives=[part])
    for place in (0, 6):
        skin = file.append("skins", joints=[file.node(translation=[place, 0, 0])])
        file.node(mesh=mesh, skin=skin, translation=[99, 99, 99])
    check_cube(load(file, tmp_path), (0, 0, 0), (7, 1, 1), count=2)


@pytest.mark.parametrize("name", ["KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression"])
def test_compression_that_is_required_is_refused(tmp_path: Path, name: str) -> None:
    file, part = cube_file()
    file.node(mesh=file.append("meshes", primitives=[part]))
    file.json["extensionsRequired"] = [name]
    with pytest.raises(MeshError, match=f"is compressed with {name}; store it uncompressed"):
        load(file, tmp_path)


def test_unknown_requirements_are_refused_and_harmless_ones_are_not(tmp_path: Path) -> None:
    file, part = cube_file()
    file.node(mesh=file.append("meshes", primitives=[part]))
    file.json["extensionsRequired"] = ["KHR_materials_unlit", "KHR_texture_basisu"]
    check_cube(load(file, tmp_path))
    file.json["extensionsRequired"].append("VENDOR_shape")
    with pytest.raises(MeshError, match="requires the glTF extension VENDOR_shape, which is not known here"):
        load(file, tmp_path)


def test_a_plain_copy_beside_compressed_data_is_read(tmp_path: Path) -> None:
    file, part = cube_file()
    part["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {}}}
    file.node(mesh=file.append("meshes", primitives=[part]))
    check_cube(load(file, tmp_path))
    del file.json["accessors"][0]["bufferView"]
    with pytest.raises(MeshError, match="is compressed with KHR_draco_mesh_compression"):
        load(file, tmp_path)


def test_compressed_views_are_refused_where_their_buffer_is_empty(tmp_path: Path) -> None:
    file, part = cube_file()
    file.node(mesh=file.append("meshes", primitives=[part]))
    file.json["bufferViews"][0]["extensions"] = {"EXT_meshopt_compression": {"buffer": 0}}
    check_cube(load(file, tmp_path))
    file.json["bufferViews"][0]["buffer"] = 1
    path = tmp_path / "b.glb"
    file.save(path)
    text = path.read_bytes().replace(b'"buffers": [{', b'"buffers": [{"byteLength": 9},{', 1)
    # The longer text needs a header of its own.
    at = text.index(b"BIN\0") - 4
    path.write_bytes(text[:8] + len(text).to_bytes(4, "little") + (at - 20).to_bytes(4, "little") + text[16:])
    with pytest.raises(MeshError, match="is compressed with EXT_meshopt_compression"):
        load_mesh(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f, p: p.update(mode=9), "has a glTF primitive of mode 9, expected 0 to 6"),
        (lambda f, p: p["attributes"].update(POSITION=1), "has a glTF accessor 1 of type SCALAR, expected VEC3"),
        (lambda f, p: p.update(indices=-1), "has -1 as the number of a glTF accessor"),
        (lambda f, p: f.json["accessors"][0].update(count=7), "has a face that names vertex 7 of 7"),
        (lambda f, p: f.json["accessors"][0].update(count=9), "has a glTF accessor that reads to byte 108 of a view of 96"),
        (lambda f, p: f.json["bufferViews"][0].update(byteOffset=-4), "has a glTF accessor that reads to byte"),
        (lambda f, p: f.json["bufferViews"][0].update(buffer=-1), "has a negative index in its glTF description"),
        (lambda f, p: f.json["bufferViews"][0].update(buffer=3), r"has a damaged glTF description \(IndexError"),
        (lambda f, p: f.json["nodes"][0].update(children=[0]), "has a scene that reaches glTF node 0 twice"),
        (lambda f, p: f.json["scenes"][0].update(nodes=[5]), "has a scene that reaches glTF node 5 twice, or it is not there"),
        (lambda f, p: f.json["asset"].update(version="1.0"), "is glTF 1.0, expected 2"),
        (lambda f, p: p.update(indices=None), "has None as the number of a glTF accessor"),
        (lambda f, p: f.json["nodes"][0].update(mesh="a"), r"has a damaged glTF description \(TypeError"),
    ],
)  # fmt: skip
def test_damaged_descriptions_are_refused(tmp_path: Path, change: Any, reason: str) -> None:
    file, part = cube_file()
    file.node(mesh=file.append("meshes", primitives=[part]))
    change(file, part)
    with pytest.raises(MeshError, match=reason):
        load(file, tmp_path)


def test_nodes_that_are_their_own_parents_are_refused(tmp_path: Path) -> None:
    file, part = cube_file()
    part["attributes"] |= {
        "JOINTS_0": file.accessor(np.zeros((8, 4)), 5121),
        "WEIGHTS_0": file.accessor(np.ones((8, 4))),
    }
    file.node(mesh=file.append("meshes", primitives=[part]), skin=file.append("skins", joints=[1]))
    file.node(root=False, children=[2])
    file.node(root=False, children=[1])
    with pytest.raises(MeshError, match="has glTF nodes that are their own parents"):
        load(file, tmp_path)


def test_whole_triangles_are_kept_and_the_rest_is_told(tmp_path: Path) -> None:
    file, part = cube_file()
    part["indices"] = file.accessor(np.append(FACES.ravel(), [0, 1]), 5121)
    file.node(mesh=file.append("meshes", primitives=[part, {"attributes": {}}]))
    with pytest.warns(
        UserWarning, match="also holds 2 corners that are no whole triangle, 1 primitives without positions"
    ):
        check_cube(load(file, tmp_path))


def test_buffers_elsewhere_are_not_opened(tmp_path: Path) -> None:
    file, part = cube_file()
    file.node(mesh=file.append("meshes", primitives=[part]))
    (tmp_path / "inner").mkdir()
    path = tmp_path / "inner" / "a.gltf"
    file.save(path, "external")
    data = path.with_name("a data.bin").read_bytes()
    (tmp_path / "secret.bin").write_bytes(data)
    (tmp_path / "inner" / "link.bin").symlink_to(tmp_path / "secret.bin")
    text = path.read_text()
    for uri in ("../secret.bin", str(tmp_path / "secret.bin"), "%2e%2e/secret.bin", "link.bin", "http://host/a.bin"):
        path.write_text(text.replace("a%20data.bin", uri))
        with pytest.raises(MeshError, match=r"refers to another file, .* that is not in its folder"):
            load_mesh(path)
    path.write_text(text.replace("a%20data.bin", "absent.bin"))
    with pytest.raises(MeshError, match=r"refers to another file, 'absent\.bin', that is not there"):
        load_mesh(path)
    path.write_text(text)
    path.with_name("a data.bin").write_bytes(data + bytes(3 * len(text)))
    with pytest.raises(MeshError, match=r"bytes with its buffers, at most .* are read"):
        load_mesh(path, MeshLimits(max_bytes=len(text)))
