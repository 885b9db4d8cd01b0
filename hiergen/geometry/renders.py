"""Shaded pictures of meshes by casting one ray a sample: no OpenGL, no display, the same bits on every machine of a kind.

What is rendered is plain clay (or normals): enough for conditioning tests, previews and contact sheets, no substitute for
textured training images.

Letters: `f` faces, `v` vertices, `h w` image.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, UInt8

from hiergen.checked import Checked
from hiergen.geometry.ray_crossings import index_ranges, vertical_crossings

if TYPE_CHECKING:
    import trimesh

#: Share of the picture that the longer side of the object takes when it is fitted.
FILL = 0.88
#: Directions towards the lights in the camera's frame (right, up, towards the viewer), with their strengths.
_LIGHTS = (((-0.45, 0.65, 0.6), 0.68), ((0.7, 0.1, 0.5), 0.22))
_AMBIENT = 0.28
#: Cosine of the angle up to which neighboring faces are shaded as one smooth surface.
_CREASE = 0.75


@dataclasses.dataclass(frozen=True)
class RenderSettings(Checked):
    """How a mesh is shown.

    Attributes:
        shading: "clay" with two lights, or "normals": (n + 1) / 2 in the camera's frame.
        color: Color of the clay, RGB in [0, 1].
        background: Color of the background, RGB in [0, 1]; white is what image conditions expect.
        field_of_view: Vertical field of view in radians; 0 is orthographic.
        is_fitted: Center the object and scale it to fill the picture; else the camera is fixed and shows [-extent, extent].
        extent: Half the visible height at the origin, in the units of the mesh, when not fitted.
        samples: Number of rays per pixel along each axis.
    """

    shading: Literal["clay", "normals"] = "clay"
    color: tuple[float, float, float] = (0.82, 0.84, 0.88)
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    field_of_view: float = math.radians(30)
    is_fitted: bool = True
    extent: float = 1.3
    samples: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shading not in ("clay", "normals"):
            raise ValueError(f"shading is {self.shading!r}, expected 'clay' or 'normals'")
        if not 0 <= self.field_of_view < math.pi / 2:
            raise ValueError(f"field_of_view is {self.field_of_view}, expected 0 to below pi / 2 radians")
        if self.samples < 1 or not self.extent > 0:
            raise ValueError(f"samples is {self.samples} and extent {self.extent}, expected both positive")


def render_mesh(
    mesh: trimesh.Trimesh,
    size: int = 256,
    azimuth: float = math.radians(35),
    elevation: float = math.radians(20),
    settings: RenderSettings | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a square picture of a mesh; y is up. Both sides of a face are shown.

    Args:
        mesh: Any triangles; closed or not.
        size: Height and width in pixels.
        azimuth: Azimuth of the camera in radians: 0 looks from +z, a quarter turn from +x.
        elevation: Elevation of the camera above the horizon, in radians.
        settings: Settings of the rendering; None takes the defaults.

    Raises:
        ValueError: If `size` is not positive, the mesh has no faces, or a fixed camera stands inside it.
    """
    settings = settings or RenderSettings()
    if size < 1:
        raise ValueError(f"size is {size}, expected at least 1 pixel")
    if not len(mesh.faces):
        raise ValueError("the mesh has no faces to render")
    camera = _camera(azimuth, elevation)
    seen = np.asarray(mesh.vertices, np.float64) @ camera.T
    screen, nearness, inverse_depth = _project(seen, settings)
    corners = np.concatenate([screen, nearness[:, None]], axis=1)[mesh.faces]

    count = size * settings.samples
    axis = (np.arange(count) + 0.5) * (2 / count) - 1
    rays = np.stack(np.meshgrid(axis, -axis, indexing="xy"), axis=-1).reshape(-1, 2)
    hits = vertical_crossings(corners, rays)
    # The nearest crossing of a ray counts: the greatest inverse depth; the lower face breaks a tie.
    order = np.lexsort((-hits.face, hits.height, hits.point))
    last = np.flatnonzero(np.diff(hits.point[order], append=-1))
    nearest = order[last]
    image = np.tile(np.asarray(settings.background), (len(rays), 1))
    if len(nearest):
        normals = _shading_normals(mesh, seen, hits.face[nearest], hits.weights[nearest], inverse_depth)
        image[hits.point[nearest]] = _shade(normals, settings)
    return _reduced(image, size, settings.samples)


def render_points(
    points: Float[np.ndarray, "n 6"],
    size: int = 256,
    azimuth: float = math.radians(35),
    elevation: float = math.radians(20),
    settings: RenderSettings | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a square picture of a surface of which only points are known: each is a disk, so large that they hide what is behind.

    Args:
        points: xyz and unit outward normals; those that face away are not shown.
        size: Height and width in pixels.
        azimuth: As in `render_mesh`.
        elevation: As in `render_mesh`.
        settings: Settings of the rendering; None takes the defaults.

    Raises:
        ValueError: If `size` is not positive, there are no points, or a fixed camera stands among them.
    """
    settings = settings or RenderSettings()
    if size < 1 or not len(points):
        raise ValueError(f"size is {size} for {len(points)} points, expected at least 1 of both")
    camera = _camera(azimuth, elevation)
    screen, nearness, _ = _project(np.asarray(points[:, :3], np.float64) @ camera.T, settings)
    normals = np.asarray(points[:, 3:], np.float64) @ camera.T
    shown = np.flatnonzero(normals[:, 2] > 0)
    count = size * settings.samples
    image = np.tile(np.asarray(settings.background), (count * count, 1))
    # A shape covers some 0.4 of the picture; twice as much, as points do not lie evenly.
    radius = min(math.ceil(1.1 * count * math.sqrt(0.4 / max(1, len(shown)))), max(1, count // 16))
    steps = np.arange(-radius, radius + 1)
    disk = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    disk = disk[(disk**2).sum(axis=1) <= radius**2]
    centers = np.floor((screen[shown] * [1, -1] + 1) * (count / 2)).astype(np.int64)
    pixels = (centers[:, None] + disk).reshape(-1, 2)
    owner = np.repeat(shown, len(disk))
    inside = ((pixels >= 0) & (pixels < count)).all(axis=1)
    pixels, owner = pixels[inside], owner[inside]
    # What is written last is seen: the nearest.
    order = np.argsort(nearness[owner], kind="stable")
    image[pixels[order, 1] * count + pixels[order, 0]] = _shade(normals[owner[order]], settings)
    return _reduced(image, size, settings.samples)


def _reduced(image: np.ndarray, size: int, samples: int) -> UInt8[np.ndarray, "h w 3"]:
    """Return the means of the samples of each pixel, as bytes."""
    image = image.reshape(size, samples, size, samples, 3).mean(axis=(1, 3))
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def _camera(azimuth: float, elevation: float) -> np.ndarray:
    """Return the rows right, up and towards the viewer."""
    sin_a, cos_a, sin_e, cos_e = math.sin(azimuth), math.cos(azimuth), math.sin(elevation), math.cos(elevation)
    right = np.array([cos_a, 0.0, -sin_a])
    back = np.array([sin_a * cos_e, sin_e, cos_a * cos_e])
    return np.stack([right, np.cross(back, right), back])


def _project(seen: np.ndarray, settings: RenderSettings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return positions in a picture of [-1, 1]^2, what grows towards the viewer and is linear on the screen, and 1 / depth."""
    if settings.is_fitted:
        low, high = seen.min(axis=0), seen.max(axis=0)
        seen = seen - (low + high) / 2
        extent = float(np.linalg.norm(seen, axis=1).max()) or 1.0
    else:
        extent = settings.extent
    if settings.field_of_view:
        distance = extent / math.sin(settings.field_of_view / 2)
        depth = distance - seen[:, 2]
        if not depth.min() > 0:
            raise ValueError("the camera stands inside the mesh; fit the picture, or increase extent")
        inverse_depth = distance / depth
        nearness = inverse_depth
    else:
        inverse_depth, nearness = np.ones(len(seen)), seen[:, 2]
    screen = seen[:, :2] * inverse_depth[:, None] / extent
    if settings.is_fitted:
        low, high = screen.min(axis=0), screen.max(axis=0)
        screen = (screen - (low + high) / 2) * (2 * FILL / max(float((high - low).max()), 1e-12))
    return screen, nearness, inverse_depth


def _shading_normals(
    mesh: trimesh.Trimesh, seen: np.ndarray, face: np.ndarray, weights: np.ndarray, inverse_depth: np.ndarray
) -> np.ndarray:
    """Return unit normals in the camera's frame, towards the viewer: smooth where neighboring faces nearly agree, else flat."""
    visible, which = np.unique(face, return_inverse=True)
    corner = seen[mesh.faces]
    area_normals = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    corners = _corner_normals(np.asarray(mesh.faces), area_normals, visible)[which]
    # Weights on the screen become weights on the face: perspective divides by depth.
    weights = weights / inverse_depth[mesh.faces[face]]
    normals = _unit((corners * weights[:, :, None]).sum(axis=1))
    return np.where((area_normals[face, 2] < 0)[:, None], -normals, normals)


def _corner_normals(faces: np.ndarray, area_normals: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return for the three corners of each chosen face the mean normal of the faces there that do not bend away from it."""
    order = np.argsort(faces.reshape(-1), kind="stable")
    starts = np.searchsorted(faces.reshape(-1)[order], np.arange(faces.max() + 2))
    vertex = faces[chosen].reshape(-1)
    corner, position = index_ranges(starts[vertex], starts[vertex + 1])
    neighbor = order[position] // 3
    unit = _unit(area_normals)
    agrees = (unit[neighbor] * unit[chosen[corner // 3]]).sum(axis=1) > _CREASE
    total = np.zeros((len(vertex), 3))
    np.add.at(total, corner[agrees], area_normals[neighbor[agrees]])
    return _unit(total).reshape(len(chosen), 3, 3)


def _shade(normals: np.ndarray, settings: RenderSettings) -> np.ndarray:
    if settings.shading == "normals":
        return (normals + 1) / 2
    light = np.full(len(normals), _AMBIENT)
    for direction, strength in _LIGHTS:
        light += strength * np.clip(normals @ _unit(np.asarray(direction)), 0, None)
    return light[:, None] * np.asarray(settings.color)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(min=1e-20)
