"""The embedded shape set: parametric furniture and household things, any number of each class, no download.

Shape `index` of seed `seed` is a pure function of the two; its class is `index % number of classes`, so that every prefix is
balanced. y is up, the front looks along +z. All parts are at least about 3 % of the longest side thick, which a coarse grid
resolves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hiergen.geometry.convex_parts import ConvexPart, ConvexSolid, box, ellipsoid, frustum, lathe, sweep
from hiergen.geometry.meshes import require_shape_libraries
from hiergen.geometry.poses import HALF_SIZE

if TYPE_CHECKING:
    import trimesh

Rng = np.random.Generator


@dataclasses.dataclass(frozen=True)
class ProceduralShape:
    """One shape of the set.

    Attributes:
        class_name: One of `PROCEDURAL_CLASSES`.
        solid: The normalized solid: center of the box at the origin, longest side 1.9. Its inside test is exact.
    """

    class_name: str
    solid: ConvexSolid

    def to_mesh(self) -> trimesh.Trimesh:
        """Return the watertight mesh of the solid."""
        return self.solid.to_mesh()


def procedural_shape(index: int, *, seed: int = 0, classes: Sequence[str] | None = None) -> ProceduralShape:
    """Return shape `index` of the set that `seed` makes.

    Args:
        index: Any non-negative number; its class is `classes[index % len(classes)]`.
        seed: Non-negative.
        classes: A selection of `PROCEDURAL_CLASSES`; None for all. Order matters.

    Raises:
        ValueError: If `index` or `seed` is negative, or a class is unknown.
    """
    chosen = PROCEDURAL_CLASSES if classes is None else tuple(classes)
    unknown = sorted(set(chosen) - set(PROCEDURAL_CLASSES))
    if unknown or not chosen:
        raise ValueError(f"classes are {list(chosen)}, expected some of {', '.join(PROCEDURAL_CLASSES)}")
    if index < 0 or seed < 0:
        raise ValueError(f"index is {index} and seed is {seed}, expected both to be at least 0")
    require_shape_libraries()
    name = chosen[index % len(chosen)]
    rng = np.random.default_rng([seed, index])
    solid = ConvexSolid(tuple(_MAKERS[name](rng)))
    return ProceduralShape(name, solid.normalized(HALF_SIZE))


def _legs(width: float, depth: float, height: float, thickness: float, rng: Rng) -> list[ConvexPart]:
    """Return four legs inside a `width` x `depth` footprint: square or round, straight or splayed."""
    sides = int(rng.choice([4, 12]))
    taper = rng.uniform(0.75, 1.0)
    splay = rng.choice([0.0, 0.08]) * height
    # The polygon's corners must stay inside the footprint: a square of radius r reaches r / sqrt 2 along the axes.
    radius = thickness / 2 * (math.sqrt(2) if sides == 4 else 1.0)
    x, z = width / 2 - thickness / 2, depth / 2 - thickness / 2
    return [
        frustum((i * x, height, j * z), (i * (x + splay), 0, j * (z + splay)), radius, radius * taper, sides=sides)
        for i in (-1, 1)
        for j in (-1, 1)
    ]


def _bed(rng: Rng) -> list[ConvexPart]:
    width, length = rng.uniform(0.9, 1.7), 2.0
    frame, mattress = rng.uniform(0.15, 0.3), rng.uniform(0.15, 0.3)
    leg = rng.uniform(0.1, 0.3)
    top = leg + frame
    parts = _legs(width, length, leg + 0.05, 0.14, rng)
    parts.append(box((width, frame, length), (0, leg + frame / 2, 0)))
    parts.append(box((width * 0.94, mattress, length * 0.96), (0, top + mattress / 2 - 0.01, 0)))
    head = rng.uniform(0.5, 0.9)
    parts.append(box((width, head + frame, 0.12), (0, leg + (head + frame) / 2, -length / 2 + 0.02)))
    if rng.random() < 0.5:
        foot = rng.uniform(0.25, 0.4)
        parts.append(box((width, foot + frame, 0.12), (0, leg + (foot + frame) / 2, length / 2 - 0.02)))
    count = 2 if width > 1.3 else 1
    for k in range(count):
        x = (k - (count - 1) / 2) * width * 0.46
        parts.append(ellipsoid((x, top + mattress + 0.03, -length * 0.34), (width * 0.42 / count, 0.1, 0.2)))
    return parts


def _bottle(rng: Rng) -> list[ConvexPart]:
    radius, neck = rng.uniform(0.25, 0.5), rng.uniform(0.09, 0.16)
    body, shoulder, tall = rng.uniform(0.8, 1.3), rng.uniform(0.1, 0.45), rng.uniform(0.2, 0.5)
    waist = radius * rng.uniform(0.75, 1.0)
    sides = int(rng.choice([6, 24]))
    top = body + shoulder + tall
    profile = [
        (radius * 0.85, 0.0),
        (radius, 0.08),
        (waist, body / 2),
        (radius, body),
        ((radius + neck) / 2 * rng.uniform(0.85, 1.15), body + shoulder * 0.6),
        (neck, body + shoulder),
        (neck, top),
    ]
    parts = lathe(profile, sides=sides)
    cap = rng.uniform(0.1, 0.18)
    parts.append(frustum((0, top - cap / 2, 0), (0, top + cap / 2, 0), neck * rng.uniform(1.2, 1.5), sides=16))
    return parts


def _car(rng: Rng) -> list[ConvexPart]:
    length, width, body = 2.0, rng.uniform(0.75, 0.95), rng.uniform(0.22, 0.36)
    wheel = rng.uniform(0.17, 0.25)
    floor = wheel * rng.uniform(0.7, 1.0)
    parts = [box((width, body, length), (0, floor + body / 2, 0))]
    back, front = rng.uniform(-0.95, -0.5), rng.uniform(0.2, 0.55)
    height = rng.uniform(0.28, 0.5)
    rake, tuck = rng.uniform(0.1, 0.4), rng.uniform(0.8, 0.95)
    base = floor + body - 0.02
    low = [(x * width * 0.48, base, z) for x in (-1, 1) for z in (back, front)]
    high = [(x * width * 0.48 * tuck, base + height, z) for x in (-1, 1) for z in (back + rake * 0.4, front - rake)]
    parts.append(ConvexPart.hull(low + high))
    thickness, axle = rng.uniform(0.14, 0.2), rng.uniform(0.55, 0.68)
    for x in (-1, 1):
        for z in (-axle, axle):
            outer, inner = x * (width / 2 + 0.03), x * (width / 2 + 0.03 - thickness)
            parts.append(frustum((inner, wheel, z), (outer, wheel, z), wheel, sides=16))
    return parts


def _chair(rng: Rng) -> list[ConvexPart]:
    width, depth = rng.uniform(0.75, 1.0), rng.uniform(0.75, 1.0)
    seat, thick = rng.uniform(0.7, 0.95), rng.uniform(0.09, 0.18)
    parts = _legs(width, depth, seat, rng.uniform(0.09, 0.15), rng)
    parts.append(box((width, thick, depth), (0, seat + thick / 2 - 0.02, 0)))
    back, lean = rng.uniform(0.7, 1.1), rng.uniform(0.0, 0.2)
    z, slab = -depth / 2, rng.uniform(0.09, 0.13)

    def upright(left: float, right: float, low: float, high: float) -> ConvexPart:
        corners = [
            (x, seat + y, z - lean * y / back + shift)
            for x in (left, right)
            for y in (low, high)
            for shift in (0.0, slab)
        ]
        return ConvexPart.hull(corners)

    if rng.random() < 0.5:
        parts.append(upright(-width / 2, width / 2, 0.0, back))
    else:
        post = 0.12
        parts += [upright(-width / 2, -width / 2 + post, 0.0, back), upright(width / 2 - post, width / 2, 0.0, back)]
        for k in range(int(rng.integers(1, 4))):
            top = back * (1 - 0.32 * k)
            parts.append(upright(-width / 2, width / 2, top - 0.16, top))
    if rng.random() < 0.4:
        rise = rng.uniform(0.25, 0.35)
        for x in (-1, 1):
            parts.append(box((0.1, 0.1, depth), (x * (width / 2 - 0.05), seat + rise, 0)))
            parts.append(box((0.1, rise, 0.1), (x * (width / 2 - 0.05), seat + rise / 2, depth / 2 - 0.05)))
    return parts


def _lamp(rng: Rng) -> list[ConvexPart]:
    height, pole = rng.uniform(0.7, 1.3), rng.uniform(0.05, 0.08)
    base, thick = rng.uniform(0.28, 0.45), rng.uniform(0.08, 0.14)
    parts = [frustum((0, 0, 0), (0, thick, 0), base, base * rng.uniform(0.6, 1.0))]
    parts.append(frustum((0, thick - 0.02, 0), (0, height, 0), pole, sides=10))
    if rng.random() < 0.5:
        bulge = rng.uniform(0.15, 0.26)
        parts.append(ellipsoid((0, thick + bulge, 0), (bulge, bulge * 1.2, bulge)))
    low, high = rng.uniform(0.4, 0.6), rng.uniform(0.2, 0.38)
    shade = rng.uniform(0.4, 0.65)
    bottom, wall = height - 0.1, 0.08
    parts.append(frustum((0, bottom, 0), (0, bottom + shade, 0), low, high))
    # Hollow from below, closed above, with the pole put back to reach the ceiling of the shade.
    parts.append(frustum((0, bottom - 0.01, 0), (0, bottom + shade - wall, 0), low - wall, high - wall).cut())
    parts.append(frustum((0, bottom - 0.1, 0), (0, bottom + shade - wall / 2, 0), pole, sides=10))
    return parts


def _mug(rng: Rng) -> list[ConvexPart]:
    height, low = rng.uniform(0.8, 1.3), rng.uniform(0.35, 0.5)
    high = low * rng.uniform(0.9, 1.2)
    wall = rng.uniform(0.08, 0.12)
    sides = int(rng.choice([8, 32]))
    reach, tube = rng.uniform(0.25, 0.4), rng.uniform(0.06, 0.09)
    span = height * rng.uniform(0.25, 0.36)
    middle = height * rng.uniform(0.45, 0.55)
    angle = np.linspace(-math.pi / 2, math.pi / 2, 9)
    start = min(low, high) * math.cos(math.pi / sides) - wall * 0.5
    arc = np.stack([start + np.cos(angle) * reach, middle + np.sin(angle) * span, 0 * angle], axis=1)
    inner = [[start - 0.05, arc[0, 1], 0.0]]
    path = np.concatenate([inner, arc, [[start - 0.05, arc[-1, 1], 0.0]]])
    parts = sweep(path, tube)
    parts.append(frustum((0, 0, 0), (0, height, 0), low, high, sides=sides))
    parts.append(frustum((0, wall, 0), (0, height + 0.01, 0), low - wall, high - wall, sides=sides).cut())
    return parts


def _shelf(rng: Rng) -> list[ConvexPart]:
    width, depth, height = rng.uniform(0.8, 1.4), rng.uniform(0.4, 0.6), rng.uniform(1.4, 2.0)
    board = rng.uniform(0.09, 0.12)
    parts = [box((board, height, depth), (x * (width - board) / 2, height / 2, 0)) for x in (-1, 1)]
    count = int(rng.integers(2, 5))
    for y in np.linspace(rng.uniform(0.0, 0.15), height - board, count + 1):
        parts.append(box((width, board, depth), (0, y + board / 2, 0)))
    if rng.random() < 0.6:
        parts.append(box((width, height, 0.1), (0, height / 2, -depth / 2 + 0.05)))
    if rng.random() < 0.4:
        parts.append(box((board, height, depth), (rng.uniform(-0.15, 0.15) * width, height / 2, 0)))
    return parts


def _table(rng: Rng) -> list[ConvexPart]:
    height, thick = rng.uniform(0.6, 1.1), rng.uniform(0.09, 0.15)
    if rng.random() < 0.35:
        radius = rng.uniform(0.6, 0.9)
        stem, foot = rng.uniform(0.1, 0.16), rng.uniform(0.4, 0.6) * radius
        parts = [frustum((0, height, 0), (0, height + thick, 0), radius, sides=int(rng.choice([8, 32])))]
        parts.append(frustum((0, 0.05, 0), (0, height + 0.02, 0), stem, sides=12))
        parts.append(frustum((0, 0, 0), (0, 0.12, 0), foot, foot * 0.7))
        return parts
    width, depth = rng.uniform(1.2, 2.0), rng.uniform(0.7, 1.2)
    parts = _legs(width * 0.96, depth * 0.96, height + 0.02, rng.uniform(0.1, 0.16), rng)
    parts.append(box((width, thick, depth), (0, height + thick / 2, 0)))
    if rng.random() < 0.4:
        parts.append(box((width * 0.85, 0.09, depth * 0.85), (0, height * 0.35, 0)))
        # The board of a splayed table would hang in the air: two rails carry it at every splay.
        parts.append(box((width, 0.09, 0.12), (0, height * 0.35, -depth * 0.4)))
        parts.append(box((width, 0.09, 0.12), (0, height * 0.35, depth * 0.4)))
    return parts


_MAKERS: dict[str, Callable[[Rng], list[ConvexPart]]] = {
    "bed": _bed,
    "bottle": _bottle,
    "car": _car,
    "chair": _chair,
    "lamp": _lamp,
    "mug": _mug,
    "shelf": _shelf,
    "table": _table,
}

#: Names of the classes, in the order of their ids.
PROCEDURAL_CLASSES = tuple(_MAKERS)
