"""STL: binary and text. Source: 3D Systems, StereoLithography Interface Specification, 1989."""

from __future__ import annotations

import re

import numpy as np

from hiergen.geometry.formats.polygons import MeshLimits, Polygons, Refused, check_count
from hiergen.geometry.formats.text import parse_numbers, plain_text

_HEADER, _FACE = 84, 50


def read_stl(data: bytes, limits: MeshLimits) -> Polygons:
    """Return the triangles of an STL file, of all solids if it holds several.

    Raises:
        Refused: If it is none, or damaged, or too large.
    """
    claimed = _claimed(data, 0)
    # The same four bytes of a text, none of them below a tab's 9, would claim 150 million faces.
    if claimed > 0 and _HEADER + _FACE * claimed <= len(data):
        return _read_binary(data, limits)
    text = data.removeprefix(b"\xef\xbb\xbf").strip(b"\0\x1a \t\r\n")
    if text[:5].lower() == b"solid" and b"\0" not in text:
        return _read_text(text, limits)
    if claimed == 0 and not data[_HEADER:].strip(b"\0 \t\r\n"):
        raise Refused("holds no faces")
    raise Refused(f"is not STL, or truncated: its header says {claimed:,} faces, it has {len(data):,} bytes")


def _claimed(data: bytes, at: int) -> int:
    """Return how many faces the binary header at a place says; -1 where there is no room for one."""
    return int.from_bytes(data[at + 80 : at + _HEADER], "little") if len(data) >= at + _HEADER else -1


def _read_binary(data: bytes, limits: MeshLimits) -> Polygons:
    parts: list[np.ndarray] = []
    at = 0
    while (count := _claimed(data, at)) > 0 and at + _HEADER + _FACE * count <= len(data):
        check_count(count + sum(len(part) for part in parts), limits.max_faces, "face")
        record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
        parts.append(np.frombuffer(data, record, count, at + _HEADER)["corners"])
        at += _HEADER + _FACE * count
    with np.errstate(invalid="ignore"):
        triangles = np.concatenate(parts).astype(np.float64)
    rest = data[at:]
    dropped = [f"{len(rest):,} bytes behind its end"] if rest.strip(b"\0 \t\r\n") else []
    return _polygons(triangles.reshape(-1, 3), np.full(len(triangles), 3), dropped)


def _read_text(data: bytes, limits: MeshLimits) -> Polygons:
    text = plain_text(data).lower()
    # Names may hold any word.
    text = re.sub(rb"(?m)^[ \t]*(?:end)?solid\b[^\n]*?(?=\bfacet\s+normal\b|$)", b"", text)
    check_count(len(re.findall(rb"\bendfacet\b", text)), limits.max_faces, "face")
    if len(re.findall(rb"(?<!end)\bfacet\b", text)) != len(re.findall(rb"\bendfacet\b", text)):
        raise Refused("is truncated: a facet does not end")
    words = re.compile(rb"\b(?:vertex\s+(\S+\s+\S+\s+\S+)|(endloop)\b)")
    found = [match.groups() for match in words.finditer(text)]
    is_end = np.array([end is not None for _, end in found], bool)
    corners = [numbers for numbers, _ in found if numbers is not None]
    vertices = parse_numbers(b"\n".join(corners), 3 * len(corners)).reshape(-1, 3)
    sizes = np.diff(np.cumsum(~is_end)[is_end], prepend=0)
    if sizes.sum() != len(corners):
        raise Refused("is truncated: a loop does not end")
    dropped = [] if re.search(rb"(?i)endsolid[^\n]*\s*\Z", data) else ["whatever followed: its last solid does not end"]
    return _polygons(vertices, sizes, dropped)


def _polygons(vertices: np.ndarray, sizes: np.ndarray, dropped: list[str]) -> Polygons:
    return Polygons(vertices, np.arange(len(vertices)), sizes.astype(np.int64), dropped)
