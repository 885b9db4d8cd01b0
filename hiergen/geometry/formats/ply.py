"""PLY: text and both byte orders, any elements and properties, polygons of any mixture, triangle strips.

Source: G. Turk, The PLY Polygon File Format, 1994.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from hiergen.geometry.formats.polygons import MeshLimits, Polygons, Refused, check_count, strip_triangles
from hiergen.geometry.formats.text import parse_numbers, whole_numbers
from hiergen.geometry.ray_crossings import index_ranges

_TYPES = {
    **{
        "char": "i1",
        "uchar": "u1",
        "short": "i2",
        "ushort": "u2",
        "int": "i4",
        "uint": "u4",
        "float": "f4",
        "double": "f8",
    },
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"int64": "i8", "uint64": "u8", "float32": "f4", "float64": "f8"},
}
_INDICES = ("vertex_indices", "vertex_index")
_SURFACES = ("face", "tristrips")


@dataclasses.dataclass(frozen=True)
class _Property:
    name: str
    kind: np.dtype
    count_kind: np.dtype | None = None


@dataclasses.dataclass
class _Element:
    name: str
    count: int
    properties: list[_Property] = dataclasses.field(default_factory=list)


class _Body:
    """The values behind the header: bytes, or the numbers of a text, each of which then counts as one unit."""

    def __init__(self, data: bytes | np.ndarray) -> None:
        self.units = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
        self.is_text = not isinstance(data, bytes)

    def size(self, kind: np.dtype) -> int:
        return 1 if self.is_text else kind.itemsize

    def strided(self, kind: np.dtype, at: int, count: int, width: int, stride: int) -> np.ndarray:
        """Return `count` rows of `width` values, `stride` units apart."""
        source, step = (self.units, self.units.itemsize) if self.is_text else (self.units, 1)
        dtype, inner = (source.dtype, step) if self.is_text else (kind, kind.itemsize)
        if at + (count - 1) * stride + width * self.size(kind) > len(self.units):
            raise Refused("is truncated")
        return np.ndarray((count, width), dtype, source.data, at * step, (stride * step, inner))

    def gathered(self, kind: np.dtype, places: np.ndarray) -> np.ndarray:
        if self.is_text:
            return self.units[places]
        return np.ascontiguousarray(self.units[places[:, None] + np.arange(kind.itemsize)]).view(kind)[:, 0]

    def count(self, kind: np.dtype, at: int) -> int:
        """Return the length of a list."""
        size = self.size(kind)
        if at + size > len(self.units):
            raise Refused("is truncated")
        value = self.units[at] if self.is_text else self.units[at : at + size].view(kind)[0]
        if not 0 <= value <= len(self.units) or value != int(value):
            raise Refused(f"has a list of {value} values")
        return int(value)


def read_ply(data: bytes, limits: MeshLimits) -> Polygons:
    """Return the polygons of a PLY file.

    Raises:
        Refused: If it is none, or damaged, or too large.
    """
    form, elements, rest = _read_header(data.removeprefix(b"\xef\xbb\xbf"))
    names = [element.name for element in elements]
    for name, most in (("vertex", limits.max_vertices), ("face", limits.max_faces)):
        counts = [element.count for element in elements if element.name == name]
        if not counts and (name == "vertex" or "tristrips" not in names):
            raise Refused(f"declares no {name} element")
        if counts and (name == "vertex" or "tristrips" not in names):
            check_count(sum(counts), most, name)
    dropped: list[str] = []
    body = _Body(rest) if form != "ascii" else _Body(_text_numbers(rest, dropped))
    at, found = 0, {}
    for element in elements:
        # Numbers too large for their type become infinite, which is refused later.
        with np.errstate(over="ignore", invalid="ignore"):
            columns, at = _read_element(element, body, at)
        found[element.name] = columns
        if element.name not in ("vertex", *_SURFACES) and element.count:
            dropped.append(f"{element.count:,} elements {element.name!r}")
    left = body.units[at:]
    if len(left) and (body.is_text or bytes(left).strip(b"\0 \t\r\n")):
        dropped.append(f"{len(left):,} {'numbers' if body.is_text else 'bytes'} behind its end")
    return _polygons(found, dropped)


def _polygons(found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]], dropped: list[str]) -> Polygons:
    vertex = found["vertex"]
    missing = [name for name in "xyz" if name not in vertex]
    if missing:
        raise Refused(f"has vertices without {', '.join(missing)}")
    vertices = np.stack([vertex[name][0] for name in "xyz"], axis=1).astype(np.float64)
    corners, sizes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for surface in _SURFACES:
        if found.get(surface):
            name = next((name for name in _INDICES if name in found[surface]), None)
            if name is None:
                raise Refused(f"has a {surface} element without {_INDICES[0]}")
            values, counts = found[surface][name]
            values = whole_numbers(values.astype(np.float64))
            if surface == "tristrips":
                triangles = strip_triangles(values, (np.cumsum(counts) - counts)[counts > 0])
                values, counts = triangles.ravel(), np.full(len(triangles), 3)
            corners.append(values)
            sizes.append(counts)
    return Polygons(vertices, np.concatenate(corners), np.concatenate(sizes).astype(np.int64), dropped)


def _read_header(data: bytes) -> tuple[str, list[_Element], bytes]:
    head = re.match(rb"ply[ \t]*(\r\n|\n|\r)", data)
    end = re.compile(rb"[\r\n][ \t]*end_header[ \t]*(\r\n|\n|\r|\Z)").search(data, 0, 1 << 16)
    if head is None or end is None:
        raise Refused("has no PLY header")
    # Behind a header of Unix lines a byte of 13 belongs to the body.
    stop = end.start(1) + len(head[1]) if end[1].startswith(head[1]) else end.end(1)
    form, elements = "", []
    for line in re.split(r"[\r\n]+", data[: end.start(1)].decode("latin-1")):
        words = line.split()
        try:
            if words[:1] == ["format"]:
                form = words[1]
            elif words[:1] == ["element"]:
                elements.append(_Element(words[1], _whole(words[2])))
            elif words[:1] == ["property"]:
                kinds = [
                    np.dtype(("<" if form == "binary_little_endian" else ">") + _TYPES[word])
                    for word in words[1:-1]
                    if word != "list"
                ]
                if len(kinds) != 1 + (words[1] == "list"):
                    raise Refused(f"has a damaged PLY header: {line.strip()[:80]!r}")
                elements[-1].properties.append(_Property(words[-1], kinds[-1], kinds[0] if len(kinds) == 2 else None))
        except (IndexError, KeyError, ValueError) as error:
            raise Refused(f"has a damaged PLY header: {line.strip()[:80]!r}") from error
    if form not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise Refused(f"has the PLY format {form[:40]!r}, expected ascii, binary_little_endian or binary_big_endian")
    return form, elements, data[stop:]


def _whole(word: str) -> int:
    if not re.fullmatch(r"\d{1,18}", word):
        raise ValueError(word)
    return int(word)


def _text_numbers(text: bytes, dropped: list[str]) -> np.ndarray:
    words = len(text.split())
    try:
        return parse_numbers(text, words)
    except Refused as error:
        # Whatever stands behind the numbers is no reason to refuse them; if there are too few of them, that will be said.
        good = re.match(rb"(?:\s*[-+]?(?:\d+\.?\d*|\.\d+|nan|inf)(?:[eE][-+]?\d+)?(?=\s|\Z))*", text)
        numbers = good[0] if good else b""
        dropped.append(f"what follows its numbers: it {error}")
        return parse_numbers(numbers, len(numbers.split()))


def _read_element(element: _Element, body: _Body, at: int) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], int]:
    """Return for each property its values and how many each row has, and where the next element begins."""
    if not element.count or not element.properties:
        return {}, at
    smallest = sum(body.size(part.count_kind or part.kind) for part in element.properties)
    if element.count * smallest > len(body.units) - at:
        raise Refused(f"is truncated: it has no room for its {element.count:,} elements {element.name!r}")
    offsets, widths, stride = _first_row(element, body, at)
    found = {}
    if at + element.count * stride <= len(body.units):
        for part, offset, width in zip(element.properties, offsets, widths, strict=True):
            if part.count_kind is not None:
                size = body.size(part.count_kind)
                lengths = body.strided(part.count_kind, at + offset - size, element.count, 1, stride)
                if (lengths != width).any():
                    break
            values = body.strided(part.kind, at + offset, element.count, width, stride)
            found[part.name] = _as_declared(values.reshape(-1), part), np.full(element.count, width)
        else:
            return found, at + element.count * stride
    return _read_mixed(element, body, at)


def _first_row(element: _Element, body: _Body, at: int) -> tuple[list[int], list[int], int]:
    """Return where in the first row the values of each property begin, how many there are, and the size of the row."""
    offsets, widths, place = [], [], 0
    for part in element.properties:
        width = 1
        if part.count_kind is not None:
            width = body.count(part.count_kind, at + place)
            place += body.size(part.count_kind)
        offsets.append(place)
        widths.append(width)
        place += width * body.size(part.kind)
    return offsets, widths, place


def _read_mixed(element: _Element, body: _Body, at: int) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], int]:
    """Read rows whose lists differ in length: each is found from the one before it, hence the loop."""
    names = [part.name for part in element.properties if part.name in (*_INDICES, *"xyz")]
    starts: dict[str, list[int]] = {name: [] for name in names}
    counts: dict[str, list[int]] = {name: [] for name in names}
    for _ in range(element.count):
        offsets, widths, size = _first_row(element, body, at)
        for part, offset, width in zip(element.properties, offsets, widths, strict=True):
            if part.name in starts:
                starts[part.name].append(at + offset)
                counts[part.name].append(width)
        at += size
        if at > len(body.units):
            raise Refused("is truncated")
    found = {}
    for part in element.properties:
        if part.name in starts:
            lengths = np.array(counts[part.name], np.int64)
            _, item = index_ranges(np.zeros(len(lengths), np.int64), lengths)
            places = np.repeat(np.array(starts[part.name], np.int64), lengths) + item * body.size(part.kind)
            found[part.name] = _as_declared(body.gathered(part.kind, places), part), lengths
    return found, at


def _as_declared(values: np.ndarray, part: _Property) -> np.ndarray:
    """Round coordinates of a text to the precision that its header declares, as a binary copy of it would be."""
    return values.astype(part.kind) if part.name in tuple("xyz") and part.kind.kind == "f" else values
