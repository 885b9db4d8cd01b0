"""Shaded pictures of meshes by casting one ray a sample: no OpenGL, no display, the same bits on every machine of a kind.

"clay" and "normals" are quick and plain: enough for conditioning tests, no substitute for textured training images. "studio" is for
people: a soft shadow on the ground, dark corners, and with "studio_normals" colors that tell which way a surface faces. Points have no
shadows: they are shown as clay or normals.

Letters: `f` faces, `v` vertices, `h w` image.
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from hiergen.checked import Checked
from hiergen.files import atomic_path
from hiergen.geometry.ray_crossings import index_ranges, vertical_crossings
from hiergen.geometry.studio import Sky

if TYPE_CHECKING:
    import trimesh

Shading = Literal["clay", "normals", "studio", "studio_normals"]

#: Share of the picture that the longer side of the object takes when it is fitted.
FILL = 0.88
#: Directions towards the lights in the camera's frame (right, up, towards the viewer), with their strengths.
_LIGHTS = (((-0.45, 0.65, 0.6), 0.68), ((0.7, 0.1, 0.5), 0.22))
_AMBIENT = 0.28
#: Cosine of the angle up to which neighboring faces are shaded as one smooth surface.
_CREASE = 0.75
#: Share of the light that the ground loses in the deepest shadow, and the shares of the picture's half between which shadows fade.
_DEPTH, _FADE = 0.6, (0.75, 0.96)
#: Azimuth at which a turntable begins, in radians, and the room around the object as a share of its radius.
_START, _ROOM = math.radians(35), 0.9


@dataclasses.dataclass(frozen=True)
class RenderSettings(Checked):
    """How a mesh is shown.

    Attributes:
        shading: "clay" with two lights, "normals" as (n + 1) / 2 in the camera's frame, "studio" or "studio_normals" with soft shadows.
        color: Color of the clay, RGB in [0, 1].
        background: Color of the background, RGB in [0, 1]; white is what image conditions expect.
        field_of_view: Vertical field of view in radians; 0 is orthographic.
        is_fitted: Center the object and scale it to fill the picture; else the camera is fixed and shows [-extent, extent].
        extent: Half the visible height at the origin, in the units of the mesh, when not fitted.
        samples: Number of rays per pixel along each axis.
    """

    shading: Shading = "clay"
    color: tuple[float, float, float] = (0.82, 0.84, 0.88)
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    field_of_view: float = math.radians(30)
    is_fitted: bool = True
    extent: float = 1.3
    samples: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shading not in get_args(Shading):
            raise ValueError(f"shading is {self.shading!r}, expected one of {', '.join(map(repr, get_args(Shading)))}")
        if not 0 <= self.field_of_view < math.pi / 2:
            raise ValueError(f"field_of_view is {self.field_of_view}, expected 0 to below pi / 2 radians")
        if self.samples < 1 or not self.extent > 0:
            raise ValueError(f"samples is {self.samples} and extent {self.extent}, expected both positive")


#: How pictures for people are rendered.
STUDIO = RenderSettings(shading="studio", color=(0.62, 0.72, 0.9), background=(0.95, 0.956, 0.968))


def render_mesh(
    mesh: trimesh.Trimesh,
    size: int = 256,
    azimuth: float = math.radians(35),
    elevation: float = math.radians(20),
    settings: RenderSettings | None = None,
    *,
    sky: Sky | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a square picture of a mesh; y is up. Both sides of a face are shown.

    Args:
        mesh: Any triangles; closed or not.
        size: Height and width in pixels.
        azimuth: Azimuth of the camera in radians: 0 looks from +z, a quarter turn from +x.
        elevation: Elevation of the camera above the horizon, in radians.
        settings: Settings of the rendering; None takes the defaults.
        sky: Lights of the studio for this mesh, where they are known from another view; None makes them.

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
    lens = _Lens.fitting(seen, settings)
    screen, nearness, inverse_depth = lens.project(seen)
    corners = np.concatenate([screen, nearness[:, None]], axis=1)[mesh.faces]

    count = size * settings.samples
    axis = (np.arange(count) + 0.5) * (2 / count) - 1
    rays = np.stack(np.meshgrid(axis, -axis, indexing="xy"), axis=-1).reshape(-1, 2)
    hits = vertical_crossings(corners, rays)
    # The nearest crossing of a ray counts: the greatest inverse depth; the lower face breaks a tie.
    order = np.lexsort((-hits.face, hits.height, hits.point))
    nearest = order[np.flatnonzero(np.diff(hits.point[order], append=-1))]
    image = np.tile(np.asarray(settings.background), (len(rays), 1))
    if not settings.shading.startswith("studio"):
        sky = None
    else:
        sky = sky or Sky.over(np.asarray(mesh.vertices)[mesh.faces])
        kept = _ground_light(sky, lens, camera, size)
        image *= kept.repeat(settings.samples, axis=0).repeat(settings.samples, axis=1).reshape(-1, 1)
    if len(nearest):
        face = hits.face[nearest]
        # Weights on the screen become weights on the face: perspective divides by depth.
        weights = hits.weights[nearest] / inverse_depth[mesh.faces[face]]
        normals = _shading_normals(mesh, seen, face, weights)
        light = None
        if sky is not None:
            # Shadows are looked up once per pixel.
            row, column = np.divmod(hits.point[nearest], count)
            pixel = row // settings.samples * size + column // settings.samples
            _, first, which = np.unique(pixel, return_index=True, return_inverse=True)
            inside = weights[first] / weights[first].sum(axis=1, keepdims=True)
            places = (seen[mesh.faces[face[first]]] * inside[:, :, None]).sum(axis=1)
            light = sky.light(places @ camera, normals @ camera, camera, which)
        image[hits.point[nearest]] = _shade(normals, settings, light)
    return _reduced(image, size, settings.samples)


def render_turntable(
    mesh: trimesh.Trimesh,
    size: int = 160,
    frames: int = 24,
    elevation: float = math.radians(20),
    settings: RenderSettings | None = None,
) -> UInt8[np.ndarray, "t h w 3"]:
    """Return pictures of a mesh from all around, `frames` equal steps of one turn, all at one scale and with one sky.

    Args:
        mesh: Any triangles; closed or not.
        size: Height and width in pixels.
        frames: Number of pictures of one turn.
        elevation: As in `render_mesh`.
        settings: Settings of the rendering; None takes `STUDIO`. The object is centered, and `is_fitted` and `extent` are not read.

    Raises:
        ValueError: If `size` or `frames` is not positive, or the mesh has no faces.
    """
    if frames < 1:
        raise ValueError(f"frames is {frames}, expected at least 1")
    if not len(mesh.faces):
        raise ValueError("the mesh has no faces to render")
    centered = mesh.copy()
    centered.vertices = mesh.vertices - np.asarray(mesh.bounds).mean(axis=0)
    radius = float(np.linalg.norm(centered.vertices, axis=1).max()) or 1.0
    settings = dataclasses.replace(settings or STUDIO, is_fitted=False, extent=radius * _ROOM / FILL)
    sky = Sky.over(centered.vertices[centered.faces]) if settings.shading.startswith("studio") else None
    turns = [_START + 2 * math.pi * frame / frames for frame in range(frames)]
    return np.stack([render_mesh(centered, size, turn, elevation, settings, sky=sky) for turn in turns])


def save_turntable(mesh: trimesh.Trimesh, path: str | os.PathLike[str], size: int = 160, frames: int = 24) -> None:
    """Write one turn of a mesh, four seconds that repeat for ever, atomically; the suffix says whether as GIF or as WebP.

    Raises:
        ValueError: As `render_turntable`, or if the suffix is another one.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".gif", ".webp"):
        raise ValueError(f"{str(path)!r} ends in {suffix!r}, expected .gif or .webp")
    first, *rest = (Image.fromarray(frame) for frame in render_turntable(mesh, size, frames))
    with atomic_path(path) as temporary:
        first.save(
            temporary, suffix[1:], save_all=True, append_images=rest, duration=round(4000 / frames), loop=0, quality=80
        )


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
    seen = np.asarray(points[:, :3], np.float64) @ camera.T
    screen, nearness, _ = _Lens.fitting(seen, settings).project(seen)
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


@dataclasses.dataclass(frozen=True)
class _Lens:
    """From places before the camera to places in a picture of [-1, 1]^2, and back.

    Attributes:
        middle: What the camera looks at, in its own frame.
        extent: Half the visible height there.
        distance: Distance of the camera from there; infinite without perspective.
        shift: Place in the unfitted picture that becomes its middle.
        scale: Factor by which the unfitted picture is enlarged.
    """

    middle: np.ndarray
    extent: float
    distance: float
    shift: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2))
    scale: float = 1.0

    @classmethod
    def fitting(cls, seen: np.ndarray, settings: RenderSettings) -> _Lens:
        """Return the lens for places that are to be seen.

        Raises:
            ValueError: If a fixed camera stands among them.
        """
        middle, extent = np.zeros(3), settings.extent
        if settings.is_fitted:
            middle = (seen.min(axis=0) + seen.max(axis=0)) / 2
            extent = float(np.linalg.norm(seen - middle, axis=1).max()) or 1.0
        distance = extent / math.sin(settings.field_of_view / 2) if settings.field_of_view else math.inf
        lens = cls(middle, extent, distance)
        if not distance - (seen - middle)[:, 2].max() > 0:
            raise ValueError("the camera stands inside the mesh; fit the picture, or increase extent")
        if not settings.is_fitted:
            return lens
        screen, _, _ = lens.project(seen)
        low, high = screen.min(axis=0), screen.max(axis=0)
        scale = 2 * FILL / max(float((high - low).max()), 1e-12)
        return dataclasses.replace(lens, shift=(low + high) / 2, scale=scale)

    def project(self, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return positions in the picture, what grows towards the viewer and is linear on the screen, and 1 / depth."""
        seen = seen - self.middle
        if math.isfinite(self.distance):
            inverse_depth = self.distance / (self.distance - seen[:, 2])
            nearness = inverse_depth
        else:
            inverse_depth, nearness = np.ones(len(seen)), seen[:, 2]
        screen = seen[:, :2] * inverse_depth[:, None] / self.extent
        return (screen - self.shift) * self.scale, nearness, inverse_depth

    def rays(self, screen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a place on the line of sight of each position in the picture, and the direction away from the viewer."""
        place = np.pad((screen / self.scale + self.shift) * self.extent, ((0, 0), (0, 1)))
        away = np.array([0.0, 0.0, -1.0])
        if math.isfinite(self.distance):
            return place + self.middle, place / self.distance + away
        return place + self.middle, np.broadcast_to(away, place.shape)


def _ground_light(sky: Sky, lens: _Lens, camera: np.ndarray, size: int) -> np.ndarray:
    """Return the share of its light that the ground keeps where each pixel's ray meets it, `(h, w)`; 1 above the horizon."""
    # What is soft needs only every other pixel.
    side = (size + 1) // 2
    axis = (np.arange(side) + 0.5) * (2 / side) - 1
    x, y = np.meshgrid(axis, -axis, indexing="xy")
    place, away = lens.rays(np.stack([x, y], axis=-1).reshape(-1, 2))
    sinking = away @ camera[:, 1]
    kept = np.ones(side * side)
    below = np.flatnonzero(sinking < -1e-6)
    if not len(below):
        return np.ones((size, size))
    along = (sky.ground - place[below] @ camera[:, 1]) / sinking[below]
    points = (place[below] + along[:, None] * away[below]) @ camera
    upward = np.broadcast_to([0.0, 1.0, 0.0], points.shape)
    lit = sky.light(points, upward, camera, np.arange(len(points)))
    # Nothing is cut by the picture's edge.
    start, end = _FADE
    fade = np.clip((end - np.maximum(abs(x), abs(y)).reshape(-1)[below]) / (end - start), 0, 1)
    kept[below] = 1 - _DEPTH * np.clip(1 - lit / lit.max(), 0, 1) * fade
    large = kept.reshape(side, side).repeat(2, axis=0).repeat(2, axis=1)
    return _blurred(large[:size, :size], max(1, size // 48))


def _blurred(picture: np.ndarray, reach: int) -> np.ndarray:
    """Return the means over squares of `2 reach + 1` pixels; the edge is repeated."""
    for axis in (0, 1):
        padded = np.pad(picture, [(reach, reach) if axis == k else (0, 0) for k in (0, 1)], mode="edge")
        picture = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=axis).mean(axis=-1)
    return picture


def _shading_normals(mesh: trimesh.Trimesh, seen: np.ndarray, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return unit normals in the camera's frame, towards the viewer: smooth where neighboring faces nearly agree, else flat."""
    visible, which = np.unique(face, return_inverse=True)
    corner = seen[mesh.faces]
    area_normals = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    corners = _corner_normals(np.asarray(mesh.faces), area_normals, visible)[which]
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


def _shade(normals: np.ndarray, settings: RenderSettings, light: np.ndarray | None = None) -> np.ndarray:
    if settings.shading == "normals":
        return (normals + 1) / 2
    if light is not None:
        color = 0.42 + 0.5 * (normals + 1) / 2 if settings.shading == "studio_normals" else np.asarray(settings.color)
        return light[:, None] * color
    light = np.full(len(normals), _AMBIENT)
    for direction, strength in _LIGHTS:
        light += strength * np.clip(normals @ _unit(np.asarray(direction)), 0, None)
    return light[:, None] * np.asarray(settings.color)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(min=1e-20)
