"""Wavefront OBJ: polygons of any number of corners. Source: the Wavefront Advanced Visualizer's file format, 3.0."""

from __future__ import annotations

import re

import numpy as np

from hiergen.geometry.formats.polygons import MeshLimits, Polygons, Refused, check_count
from hiergen.geometry.formats.text import Lines, plain_text
from hiergen.geometry.ray_crossings import index_ranges

_FACES = ("f", "fo")
#: Statements that add nothing to a surface of polygons: texture, normals, names, and what free-form surfaces are made of.
_WITHOUT_FACES = frozenset(
    {
        "vt", "vn", "vp", "g", "o", "s", "mg", "usemtl", "mtllib", "usemap",
        "maplib", "bevel", "c_interp", "d_interp", "lod", "shadow_o", "trace_ob", "cstype", "deg", "bmat",
        "step", "parm", "trim", "hole", "scrv", "sp", "end", "con", "ctech", "stech",
    }
)  # fmt: skip
_NAMES = {"p": "points", "l": "lines", "curv": "curves", "curv2": "curves", "surf": "free-form surfaces"}


def read_obj(data: bytes, limits: MeshLimits) -> Polygons:
    """Return the polygons of an OBJ file.

    Raises:
        Refused: If it is none, or damaged, or too large.
    """
    text = re.sub(rb"#[^\n]*", b"", plain_text(data))
    # A backslash continues the line; one that ends a word is part of a name, such as a folder's.
    lines = Lines(re.sub(rb"(?:(?<=[\s\d./])|(?<=\s[fv]))\\[ \t]*\n", b" ", text))
    known, which = lines.keywords()
    is_vertex = np.isin(which, [k for k, word in enumerate(known) if word == "v"])
    is_face = np.isin(which, [k for k, word in enumerate(known) if word in _FACES])
    if not is_vertex.any() or not is_face.any():
        raise Refused("holds no faces")
    check_count(int(is_vertex.sum()), limits.max_vertices, "vertex")
    check_count(int(is_face.sum()), limits.max_faces, "face")
    vertices = _vertices(lines, np.flatnonzero(is_vertex))
    sizes = lines.num_words[is_face] - 1
    _, words = index_ranges(lines.first[is_face] + 1, lines.first[is_face] + lines.num_words[is_face])
    corners = lines.as_indices(words, until_slash=True)
    if (corners == 0).any():
        raise Refused("has a face that names vertex 0; OBJ counts from 1")
    # Negative numbers count back from the vertices above the line.
    above = np.repeat(np.cumsum(is_vertex)[is_face], sizes)
    place = np.where(corners < 0, above + corners, corners - 1)
    wrong = (place < 0) | (place >= len(vertices))
    if wrong.any():
        at = int(wrong.argmax())
        count = len(vertices) if corners[at] > 0 else int(above[at])
        raise Refused(f"has a face that names vertex {corners[at]} of {count}")
    return Polygons(vertices, place, sizes, _dropped(known, which))


def _vertices(lines: Lines, chosen: np.ndarray) -> np.ndarray:
    fewest = int(lines.num_words[chosen].min()) - 1
    if fewest < 3:
        raise Refused(f"has a vertex of {fewest} coordinates, expected 3")
    return lines.numbers((lines.first[chosen][:, None] + np.arange(1, 4)).ravel()).reshape(-1, 3)


def _dropped(known: list[str], which: np.ndarray) -> list[str]:
    counts = np.bincount(which, minlength=len(known))
    found: dict[str, int] = {}
    for word, count in zip(known, counts.tolist(), strict=True):
        if word not in ("v", *_FACES) and word not in _WITHOUT_FACES:
            name = _NAMES.get(word, "lines that OBJ does not know")
            found[name] = found.get(name, 0) + count
    return [f"{count:,} {'statements of ' if name in _NAMES.values() else ''}{name}" for name, count in found.items()]
