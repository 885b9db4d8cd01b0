"""Small shaded pictures of shapes for the trackers of a training run. Nothing here is drawn at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.geometry.renders import RenderSettings, render_mesh, render_points
from hiergen.geometry.surface_extraction import EmptySurfaceError, extract_mesh
from hiergen.pyramid import TokenPyramid
from hiergen.tokenizers.pyramid_vae.model import PyramidVAE

if TYPE_CHECKING:
    import trimesh

#: Height and width in pixels, and the grid: 33 nodes per axis, found from all nodes of a grid of 17.
SIZE = 96
EXTRACTION = ExtractionSettings(depth=5, coarse_depth=4)
#: The same camera for all, so that a shape and its reconstruction lie on each other.
CAMERA = RenderSettings(is_fitted=False, extent=1.1)


def cloud_pictures(points: Float[Tensor, "b p 6"]) -> Float[Tensor, "b 3 h w"]:
    """Return pictures in [-1, 1] of surfaces of which points and outward normals are known."""
    return torch.stack([_tensor(render_points(cloud.cpu().numpy(), SIZE, settings=CAMERA)) for cloud in points])


def mesh_picture(
    mesh: trimesh.Trimesh, size: int = SIZE, settings: RenderSettings | None = None
) -> Float[Tensor, "3 h w"]:
    """Return a picture in [-1, 1] of a mesh; a white one if it has no faces."""
    return _tensor(render_mesh(mesh, size, settings=settings)) if len(mesh.faces) else torch.ones(3, size, size)


@torch.no_grad()
def token_pictures(tokenizer: PyramidVAE, pyramid: TokenPyramid) -> Float[Tensor, "b 3 h w"]:
    """Return pictures in [-1, 1] of what the finest level present decodes to; white where that has no surface, as it has early on.

    Raises:
        ImportError: If scikit-image or trimesh is not installed.
    """
    field = tokenizer.decode(pyramid.to(tokenizer.device))
    pictures = []
    for index in range(field.batch_size):
        try:
            mesh = extract_mesh(field.shape(index), EXTRACTION, device=field.device)
        except EmptySurfaceError:
            pictures.append(torch.ones(3, SIZE, SIZE))
        else:
            pictures.append(mesh_picture(mesh, settings=CAMERA))
    return torch.stack(pictures)


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div(127.5).sub(1)
