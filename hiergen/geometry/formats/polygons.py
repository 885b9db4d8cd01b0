"""What every reader returns, what it refuses, and how large a file may be.

Letters: `v` vertices, `c` corners of all polygons, `n` polygons.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float64, Int64


class Refused(ValueError):  # noqa: N818  # not an error of ours: the caller adds the file's name
    """A file cannot be read; the text continues the sentence "mesh 'FILE' ..."."""


@dataclasses.dataclass(frozen=True)
class MeshLimits:
    """Sizes above which a file is not read.

    Attributes:
        max_bytes: Largest size of a file. Text formats take 0.05 to 0.1 s of CPU per megabyte (measured).
        max_faces: Largest number of triangles.
        max_vertices: Largest number of vertices.
    """

    max_bytes: int = 256 * 2**20
    max_faces: int = 2_000_000
    max_vertices: int = 4_000_000


@dataclasses.dataclass
class Polygons:
    """Polygons as a file holds them.

    Attributes:
        vertices: Positions.
        corners: Vertices of all polygons, one polygon after the other.
        sizes: Number of corners of each polygon.
        dropped: What the file holds besides and is not read, in words.
    """

    vertices: Float64[np.ndarray, "v 3"]
    corners: Int64[np.ndarray, " c"]
    sizes: Int64[np.ndarray, " n"]
    dropped: list[str] = dataclasses.field(default_factory=list)

    def drop_small(self) -> None:
        """Drop polygons of fewer than three corners, and note it."""
        small = self.sizes < 3
        if small.any():
            self.dropped.append(f"{small.sum():,} faces of fewer than three corners")
            self.corners = self.corners[~np.repeat(small, self.sizes)]
            self.sizes = self.sizes[~small]


def check_count(count: int, most: int, element: str) -> None:
    """Refuse a file that holds none or too many of an element, "vertex" or "face"."""
    plural = "vertices" if element == "vertex" else "faces"
    if count == 0:
        raise Refused(f"holds no {plural}")
    if count > most:
        raise Refused(f"has {count:,} {plural}, at most {most:,} are read")


def strip_triangles(values: Int64[np.ndarray, " c"], first: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, "t 3"]:
    """Return the triangles of strips that lie one after the other; -1 begins a strip anew.

    Args:
        values: Vertices of the strips.
        first: Place of the first vertex of each strip in `values`.
    """
    begins = np.zeros(len(values) + 1, bool)
    begins[first] = True
    begins[1:][values == -1] = True
    place = np.arange(len(values))
    since = place - np.maximum.accumulate(np.where(begins[:-1], place, 0))
    corners = (
        np.stack([values[:-2], values[1:-1], values[2:]], axis=1) if len(values) > 2 else np.zeros((0, 3), np.int64)
    )
    # The third corner must lie at least two places behind the beginning; every other triangle turns the other way.
    whole = (since[2:] >= 2) & (corners >= 0).all(axis=1)
    odd = since[2:] % 2 == 1
    corners[odd] = corners[odd][:, [1, 0, 2]]
    return corners[whole]
