"""Conditioning views of a shape, rendered and packed as PNG files for its record."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from hiergen.checked import Checked
from hiergen.data.shapes.records import encode_png
from hiergen.geometry.poses import apply_transform, fit_transform, random_rotation, yaw_rotation
from hiergen.geometry.renders import RenderSettings, render_mesh

if TYPE_CHECKING:
    import trimesh


@dataclasses.dataclass(frozen=True)
class ViewSettings(Checked):
    """Which conditioning views a record holds.

    Attributes:
        num_views: Number of base views, at equal steps of azimuth.
        num_rotations: Number of poses that each base view is rendered in; the first is the stored one. The points follow the pose.
        rotation: How further poses are turned: "yaw" about the y axis, "any" in any way.
        size: Height and width in pixels.
        elevation: Range of the camera's elevation, in radians.
        render: Settings of the rendering.

    Source:
        MAR-3D, arXiv:2503.20519: 8 views x 7 rotations per mesh. How it rotates is not stated.
    """

    num_views: int = 8
    num_rotations: int = 1
    rotation: Literal["yaw", "any"] = "yaw"
    size: int = 224
    elevation: tuple[float, float] = (math.radians(-10), math.radians(35))
    render: RenderSettings = dataclasses.field(default_factory=RenderSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_views < 0 or self.num_rotations < 1 or self.size < 1:
            raise ValueError(
                f"num_views is {self.num_views}, num_rotations {self.num_rotations}, size {self.size}; "
                "expected at least 0, 1 and 1"
            )
        if self.rotation not in ("yaw", "any"):
            raise ValueError(f"rotation is {self.rotation!r}, expected 'yaw' or 'any'")


def render_views(
    mesh: trimesh.Trimesh, settings: ViewSettings, *, rng: np.random.Generator
) -> tuple[tuple[bytes, ...], Float[np.ndarray, "v 4 4"]]:
    """Return conditioning views as PNG files, and for each the matrix from the mesh's pose to the pose that it shows.

    All views of the first pose come first. `rng` draws elevations and rotations.
    """
    import trimesh

    views, poses = [], []
    for turn in range(settings.num_rotations if settings.num_views else 0):
        pose = np.eye(4)
        if turn:
            rotation = random_rotation(rng) if settings.rotation == "any" else yaw_rotation(rng.uniform(0, 2 * math.pi))
            pose = fit_transform(np.asarray(mesh.vertices), rotation)
        posed = trimesh.Trimesh(apply_transform(pose, np.asarray(mesh.vertices)), mesh.faces, process=False)
        for number in range(settings.num_views):
            azimuth = 2 * math.pi * number / settings.num_views
            elevation = rng.uniform(*settings.elevation)
            views.append(encode_png(render_mesh(posed, settings.size, azimuth, elevation, settings.render)))
            poses.append(pose)
    return tuple(views), np.asarray(poses, np.float32).reshape(-1, 4, 4)
