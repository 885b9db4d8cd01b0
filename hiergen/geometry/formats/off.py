"""OFF, the Object File Format of Geomview in text: OFF, COFF, NOFF, STOFF and their mixtures. Source: Geomview's manual."""

from __future__ import annotations

import re

import numpy as np

from hiergen.geometry.formats.polygons import MeshLimits, Polygons, Refused, check_count
from hiergen.geometry.formats.text import Lines, plain_text, whole_numbers
from hiergen.geometry.ray_crossings import index_ranges

_HEADER = re.compile(rb"\s*(ST)?(C)?(N)?(4)?(n)?OFF(?=[\s\d])((?:\s*BINARY)?)")


def read_off(data: bytes, limits: MeshLimits) -> Polygons:
    """Return the polygons of an OFF file.

    Raises:
        Refused: If it is none, or damaged, or too large.
    """
    start = re.sub(rb"#[^\r\n]*", b"", data.removeprefix(b"\xef\xbb\xbf")[:4096])
    head = _HEADER.match(start)
    if head is None:
        raise Refused("has no OFF header")
    if head[6]:
        raise Refused("is binary OFF; store it as text")
    if head[4] or head[5]:
        raise Refused(f"is {head[0].strip().decode()}, whose vertices are not of three dimensions")
    text = re.sub(rb"#[^\n]*", b"", plain_text(data))
    lines = Lines(_HEADER.sub(b"", text, count=1))
    if not len(lines.first) or lines.num_words[0] < 2:
        raise Refused("has no OFF header")
    num_vertices, num_faces = lines.as_indices(np.arange(2)).tolist()
    for count, most, element in ((num_vertices, limits.max_vertices, "vertex"), (num_faces, limits.max_faces, "face")):
        if count < 0:
            raise Refused(f"has {count:,} as a number of elements")
        check_count(count, most, element)
    read = _read_lines(lines, num_vertices, num_faces)
    if read is None:
        width = 3 + 2 * bool(head[1]) + 4 * bool(head[2]) + 3 * bool(head[3])
        read = _read_words(lines, num_vertices, num_faces, width)
    return read


def _read_lines(lines: Lines, num_vertices: int, num_faces: int) -> Polygons | None:
    """Return the polygons if every vertex and every face has a line of its own; colors and whatever else may end a line."""
    if len(lines.first) < 1 + num_vertices + num_faces:
        return None
    vertex, face = np.split(np.arange(1, 1 + num_vertices + num_faces), [num_vertices])
    if lines.num_words[vertex].min() < 3:
        return None
    sizes = lines.as_indices(lines.first[face])
    if sizes.min() < 0 or (lines.num_words[face] <= sizes).any():
        return None
    vertices = lines.numbers((lines.first[vertex][:, None] + np.arange(3)).ravel()).reshape(-1, 3)
    _, words = index_ranges(lines.first[face] + 1, lines.first[face] + 1 + sizes)
    rest = len(lines.first) - 1 - num_vertices - num_faces
    return Polygons(vertices, lines.as_indices(words), sizes, [f"{rest:,} lines behind its end"] if rest else [])


def _read_words(lines: Lines, num_vertices: int, num_faces: int, width: int) -> Polygons:
    """Return the polygons of a file whose line breaks mean nothing, which has no colors of faces."""
    numbers = lines.numbers(np.arange(int(lines.num_words.sum())))
    at = 3 + num_vertices * width
    vertices = numbers[3:at].reshape(-1, width)[:, :3] if len(numbers) >= at else np.zeros((0, 3))
    starts, sizes = [], []
    rest = whole_numbers(numbers[at:])
    place = 0
    for _ in range(num_faces):
        if place >= len(rest) or rest[place] < 0:
            break
        starts.append(place + 1)
        sizes.append(int(rest[place]))
        place += 1 + sizes[-1]
    if len(sizes) < num_faces or place != len(rest) or not len(vertices):
        raise Refused(f"is truncated or damaged: {num_vertices:,} vertices and {num_faces:,} faces are not all there")
    _, corners = index_ranges(np.array(starts), np.array(starts) + sizes)
    return Polygons(np.ascontiguousarray(vertices), rest[corners], np.array(sizes))
