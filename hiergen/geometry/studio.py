"""Light for renders: a sky of many small lights, each with its shadow, so that shadows are soft and corners dark.

Every light has a depth map of the mesh, made from points of its surface. The maps belong to the mesh, not to the camera: a turntable needs them once.

Letters: `f` faces, `d` lights, `n` points, `r` side of a depth map.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int64

#: Number of lights on the upper half of the sky, cells of a depth map along each axis, and points of the surface that it is made from.
NUM_LIGHTS, MAP_SIZE, NUM_POINTS = 72, 64, 60_000
#: Light of the whole sky and of the lamp, and what the ground throws back; the lamp stands up to the left behind the viewer.
_SKY, _LAMP, _BOUNCE = 0.62, 0.55, 0.2
_LAMP_DIRECTION = np.array([-0.5, 0.62, 0.6]) / np.linalg.norm([-0.5, 0.62, 0.6])
#: How sharply the lamp's light falls off around its direction: the larger, the smaller the lamp and the harder its shadow.
_LAMP_POWER = 6
#: Share of its light that even the deepest corner keeps: light comes around by many ways.
_DEEPEST = 0.18
#: Cells of a depth map that a place is moved away from its surface.
_AWAY = 1.6


@dataclasses.dataclass(frozen=True)
class Sky:
    """The lights above a mesh and what each of them sees.

    Attributes:
        center: Center of the mesh's bounding box.
        radius: Radius of the ball around it, which the depth maps cover.
        frames: For each light two directions across and the direction towards it, as rows.
        maps: Largest height of the mesh towards each light, as a share of the radius; minus infinity beside it.
        ground: Height (y) of the plane on which the mesh stands.
    """

    center: Float[np.ndarray, 3]
    radius: float
    frames: Float[np.ndarray, "d 3 3"]
    maps: Float[np.ndarray, "d r r"]
    ground: float

    @classmethod
    def over(cls, triangles: Float[np.ndarray, "f 3 3"]) -> Sky:
        """Return the sky over some triangles; y is up."""
        corners = triangles.reshape(-1, 3).astype(np.float64)
        low, high = corners.min(axis=0), corners.max(axis=0)
        center = (low + high) / 2
        radius = float(np.linalg.norm(corners - center, axis=1).max()) or 1.0
        frames = np.stack([_frame(direction) for direction in _directions(NUM_LIGHTS)])
        points = _spread((corners - center) / radius, NUM_POINTS)
        maps = np.full((NUM_LIGHTS, MAP_SIZE * MAP_SIZE), -np.inf, np.float32)
        for depths, frame in zip(maps, frames, strict=True):
            across, along, height = (points @ frame.T).T
            row, column = (
                ((side + 1) * (MAP_SIZE / 2)).astype(np.int64).clip(0, MAP_SIZE - 1) for side in (across, along)
            )
            np.maximum.at(depths, row * MAP_SIZE + column, height.astype(np.float32))
        return cls(center, radius, frames, maps.reshape(-1, MAP_SIZE, MAP_SIZE), float(low[1]))

    def light(
        self,
        places: Float[np.ndarray, "m 3"],
        normals: Float[np.ndarray, "n 3"],
        camera: Float[np.ndarray, "3 3"],
        which: Int64[np.ndarray, " n"],
    ) -> Float[np.ndarray, " n"]:
        """Return how much light falls on points of a surface; a white level surface in the open has about 1.

        Args:
            places: Places in the frame of the mesh at which shadows are looked up: one per pixel, say.
            normals: Unit normal of each point, towards the viewer.
            camera: Rows right, up and towards the viewer: the lamp goes with the viewer around the object.
            which: Number of the place that stands for each point.
        """
        directions = self.frames[:, 2]
        turned = np.array([camera[0], [0.0, 1.0, 0.0], np.cross(camera[0], [0.0, 1.0, 0.0])])
        lamp = np.clip(directions @ (_LAMP_DIRECTION @ turned), 0, None) ** _LAMP_POWER
        up = directions[:, 1]
        strength = _SKY / up.sum() + _LAMP * lamp / (lamp * up).sum()
        whole = np.clip(normals @ directions.T, 0, None) @ strength
        first = np.unique(which, return_index=True)[1]
        falling = np.clip(normals[first] @ directions.T, 0, None) * strength
        seen = (falling * self._visible(places, normals[first])).sum(axis=1)
        total = falling.sum(axis=1)
        # What hardly looks at the sky cannot say how much of it is hidden.
        share = np.where(total > 0.05, seen / total.clip(min=1e-9), 0.5)
        share = _DEEPEST + (1 - _DEEPEST) * share
        return whole * share[which] + _BOUNCE * (1 - normals[:, 1]) / 2

    def _visible(self, places: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """Return which lights are seen from each place."""
        step = 2 * self.radius / MAP_SIZE
        # A step away from the surface, or it shades itself in stripes.
        away = ((places + step * _AWAY * normals - self.center) / self.radius).astype(np.float32)
        across, along, height = (away @ self.frames[:, k].T.astype(np.float32) for k in range(3))
        row, column = (((side + 1) * (MAP_SIZE / 2)).astype(np.int32) for side in (across, along))
        is_beside = (np.abs(across) >= 1) | (np.abs(along) >= 1)
        cell = (np.arange(NUM_LIGHTS) * MAP_SIZE + row.clip(0, MAP_SIZE - 1)) * MAP_SIZE + column.clip(0, MAP_SIZE - 1)
        return is_beside | (self.maps.reshape(-1)[cell] <= height)


def _directions(count: int) -> Float[np.ndarray, "d 3"]:
    """Return directions spread evenly over the upper half of a ball, in a spiral of golden angles."""
    height = (np.arange(count) + 0.5) / count
    angle = np.arange(count) * math.pi * (3 - math.sqrt(5))
    around = np.sqrt(1 - height**2)
    return np.stack([around * np.cos(angle), height, around * np.sin(angle)], axis=1)


def _spread(corners: np.ndarray, count: int) -> Float[np.ndarray, "n 3"]:
    """Return points that lie evenly on triangles, whose corners come three by three; the same ones every time."""
    a, b, c = corners.reshape(-1, 3, 3).swapaxes(0, 1)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).cumsum()
    # One point per equal share of the area; a sequence of small discrepancy places it within its triangle.
    owner = np.searchsorted(area, (np.arange(count) + 0.5) / count * area[-1]).clip(max=len(area) - 1)
    u, v = ((np.arange(count)[:, None] + 0.5) * [0.7548776662466927, 0.5698402909980532] % 1).T
    u, v = np.where(u + v > 1, 1 - u, u)[:, None], np.where(u + v > 1, 1 - v, v)[:, None]
    return a[owner] + u * (b - a)[owner] + v * (c - a)[owner]


def _frame(direction: np.ndarray) -> Float[np.ndarray, "3 3"]:
    side = np.cross(direction, [0.0, 0.0, 1.0] if abs(direction[2]) < 0.9 else [1.0, 0.0, 0.0])
    side /= np.linalg.norm(side)
    return np.stack([side, np.cross(direction, side), direction])
