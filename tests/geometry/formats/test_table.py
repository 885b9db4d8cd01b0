"""A table of solids whose content is known, written in every format with each of its options, one at a time."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mesh_writers import (
    Solid,
    comb_prism,
    cube,
    joined,
    l_prism,
    quad_sphere,
    tetrahedron,
    write_obj,
    write_off,
    write_ply,
    write_stl,
)

from hiergen.geometry.meshes import load_mesh

TURN = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0], [0.48, 0.64, 0.6]])
SOLIDS = {
    "cube": cube(),
    "tetrahedron": tetrahedron(),
    "L": l_prism(),
    "comb": comb_prism(),
    "sphere": quad_sphere(),
    "turned comb": comb_prism().moved(TURN, np.array([3.0, -2, 7]), 40.0),
    "two bodies": joined([cube(), l_prism().moved(TURN, np.array([0, 9.0, 0]))]),
}


def check(path: Path, solid: Solid, tolerance: float = 1e-6) -> None:
    mesh = load_mesh(path)
    assert len(mesh.faces) == solid.num_triangles
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(solid.volume, rel=tolerance)
    assert mesh.area == pytest.approx(solid.area, rel=tolerance)
    np.testing.assert_allclose(mesh.bounds, [solid.vertices.min(axis=0), solid.vertices.max(axis=0)], atol=1e-5 * np.ptp(solid.vertices))  # fmt: skip


def test_the_table_says_what_it_holds() -> None:
    assert (SOLIDS["L"].volume, SOLIDS["L"].area, SOLIDS["L"].num_triangles) == (5.0, 22.0, 20)
    assert (SOLIDS["comb"].volume, SOLIDS["comb"].area) == (16.0, 52.0)
    assert SOLIDS["sphere"].volume == pytest.approx(4 / 3 * np.pi, rel=0.07)


@pytest.mark.parametrize("name", list(SOLIDS))
@pytest.mark.parametrize("write", [write_obj, write_ply, write_off])
def test_solids_of_polygons(tmp_path: Path, write: Callable[..., None], name: str) -> None:
    suffix = {write_obj: ".obj", write_ply: ".ply", write_off: ".off"}[write]
    write(tmp_path / f"a{suffix}", SOLIDS[name])
    check(tmp_path / f"a{suffix}", SOLIDS[name])


@pytest.mark.parametrize(
    "options",
    [
        {"relative": True}, {"textured": True}, {"relative": True, "textured": True, "interleaved": True}, {"tabs": True},
        {"indent": "  "}, {"indent": "\t", "tabs": True}, {"newline": "\r\n"}, {"newline": "\r"}, {"mark": b"\xef\xbb\xbf"},
        {"continued": True}, {"continued": True, "newline": "\r\n"}, {"colors": True}, {"comments": True},
    ],
)  # fmt: skip
def test_options_of_obj(tmp_path: Path, options: dict[str, Any]) -> None:
    write_obj(tmp_path / "a.obj", SOLIDS["two bodies"], **options)
    check(tmp_path / "a.obj", SOLIDS["two bodies"])


def test_obj_in_sixteen_bits(tmp_path: Path) -> None:
    write_obj(tmp_path / "a.obj", SOLIDS["L"])
    for encoding in ("utf-16-le", "utf-16-be"):
        (tmp_path / "b.obj").write_bytes(("\ufeff" + (tmp_path / "a.obj").read_text()).encode(encoding))
        check(tmp_path / "b.obj", SOLIDS["L"])


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"name": "vertex_index"}, {"faces_first": True}, {"strips": True}, {"newline": "\r\n"}, {"newline": "\r"},
        {"coordinate": "float"}, {"index_type": "uint"}, {"index_type": "short"},
        *({"count_type": kind} for kind in ("char", "ushort", "short", "uint", "int", "float")),
    ],
)  # fmt: skip
def test_options_of_ply(tmp_path: Path, form: str, options: dict[str, Any]) -> None:
    solid = SOLIDS["sphere"] if options.get("strips") else SOLIDS["two bodies"]
    write_ply(tmp_path / "a.ply", solid, form=form, **options)
    check(tmp_path / "a.ply", solid)


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("solid", ["two bodies", "tetrahedron"])
def test_other_properties_lists_and_elements_of_ply_are_passed_over(tmp_path: Path, form: str, solid: str) -> None:
    write_ply(tmp_path / "a.ply", SOLIDS[solid], form=form, extras=True)
    with pytest.warns(UserWarning, match=r"a\.ply' also holds 1 elements 'camera': not read"):
        check(tmp_path / "a.ply", SOLIDS[solid])


@pytest.mark.parametrize("tail", [b"\n", b"\0" * 7, b" \r\n"])
def test_padding_behind_the_end_means_nothing(tmp_path: Path, tail: bytes) -> None:
    write_ply(tmp_path / "a.ply", SOLIDS["L"], form="binary_little_endian", tail=tail)
    check(tmp_path / "a.ply", SOLIDS["L"])
    write_stl(tmp_path / "a.stl", SOLIDS["sphere"], tail=tail)
    check(tmp_path / "a.stl", SOLIDS["sphere"], 1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"header": b"solid body"}, {"header": b"solid facet normal 0 0 0\n vertex"}, {"parts": 3}, {"tail": b"\0" * 200},
        {"binary": False}, {"binary": False, "parts": 3}, {"binary": False, "upper": True}, {"binary": False, "newline": "\r\n"},
        {"binary": False, "newline": "\r"}, {"binary": False, "newline": " "}, {"binary": False, "number": "%.7E"},
        {"binary": False, "number": "%+.8f"}, {"binary": False, "tail": b"\n \n"},
    ],
)  # fmt: skip
def test_options_of_stl(tmp_path: Path, options: dict[str, Any]) -> None:
    solid = joined([quad_sphere(), cube().moved(TURN, np.array([3.0, 0, 0]))])
    write_stl(tmp_path / "a.stl", solid, **options)
    check(tmp_path / "a.stl", solid, 1e-4)


@pytest.mark.parametrize("kind", ["OFF", "COFF", "NOFF", "CNOFF", "STOFF", "STCNOFF"])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"counts_first": True}, {"comments": True}, {"face_colors": True}, {"blanks": True}, {"one_line": True}, {"edges": False},
        {"newline": "\r\n"}, {"newline": "\r"},
    ],
)  # fmt: skip
def test_options_of_off(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    write_off(tmp_path / "a.off", SOLIDS["two bodies"], kind=kind, **options)
    check(tmp_path / "a.off", SOLIDS["two bodies"])


def test_exponents_of_fortran_are_numbers_and_other_letters_are_not(tmp_path: Path) -> None:
    lines = ["v 1.0D+00 0 0", "v 0 1.d0 0", "v 0 0 10d-1", "f 1 2 3"]
    (tmp_path / "a.obj").write_text("\n".join(lines))
    assert sorted(map(tuple, load_mesh(tmp_path / "a.obj").vertices)) == [(0, 0, 1), (0, 1, 0), (1, 0, 0)]
    (tmp_path / "b.obj").write_text("\n".join([*lines, "v 1.0D 0 0"]))
    with pytest.raises(ValueError, match=re.escape("has '1.0D' where a number is expected")):
        load_mesh(tmp_path / "b.obj")
