"""Refined grids against dense ones, on fields whose surface is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hiergen.geometry.field_grid import ExtractionSettings, evaluate_grid
from hiergen.geometry.surface_extraction import EmptySurfaceError, extract_mesh, mesh_from_grid

Field = Callable[[Tensor], Tensor]


def norms(points: Tensor) -> Tensor:
    """The norms of points, one number at a time: matrix products and sums round otherwise where they come in other chunks."""
    return sum(axis.square() for axis in points.unbind(dim=-1)).sqrt()


def sphere(radius: float, center: tuple[float, ...] = (0.0, 0.0, 0.0)) -> Field:
    return lambda points: radius - norms(points - torch.tensor(center))


def box(sides: tuple[float, ...], center: tuple[float, ...] = (0.0, 0.0, 0.0)) -> Field:
    def field(points: Tensor) -> Tensor:
        away = (points - torch.tensor(center)).abs() - torch.tensor(sides) / 2
        return -(norms(away.clamp(min=0)) + away.amax(dim=-1).clamp(max=0))

    return field


def rod(radius: float, length: float) -> Field:
    """A rod along x between the coarse nodes, known only as inside or outside, without any distance to go by."""

    def field(points: Tensor) -> Tensor:
        away = norms(points[:, 1:] - 0.033)
        return torch.where((away < radius) & (points[:, 0] > 0) & (points[:, 0] < length), 1.0, -1.0)

    return field


def sheet(thickness: float, normal: tuple[float, ...], offset: float) -> Field:
    """A flat disc of radius 0.8 of any direction."""
    unit = torch.nn.functional.normalize(torch.tensor(normal), dim=0)

    def field(points: Tensor) -> Tensor:
        along = sum((points * unit).unbind(dim=-1))
        return torch.minimum(thickness / 2 - (along - offset).abs(), sphere(0.8)(points))

    return field


def union(*fields: Field) -> Field:
    return lambda points: torch.stack([field(points) for field in fields]).amax(dim=0)


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        (sphere(0.8), {}),
        # Thinner than a coarse cell (0.066) and between two layers of its nodes.
        (box((1.2, 1.2, 0.02), (0.0, 0.0, 0.033)), {}),
        # The same in other directions, and not in the middle of its cells.
        (sheet(0.02, (1.0, 1.0, 1.0), 0.0), {}),
        (sheet(0.02, (0.3, 1.0, -0.5), 0.3), {}),
        (sheet(0.012, (0.0, 0.0, 1.0), 0.049), {}),
        # Two parts, one of them smaller than a coarse cell and on none of its nodes.
        (union(sphere(0.4, (-0.5, 0.0, 0.0)), sphere(0.03, (0.7, 0.033, 0.033))), {}),
        # On no coarse node: found where it leaves the ball, followed to its end by crossings alone.
        (union(sphere(0.2), rod(0.03, 0.9)), {"slack": 0.0, "margin": 0}),
        (sphere(0.8), {"level": 0.25, "margin": 0}),
        (lambda points: -sphere(0.5)(points), {"coarse_depth": 4}),
    ],
    ids=[
        "sphere",
        "thin-plate",
        "diagonal-sheet",
        "oblique-sheet",
        "off-center-sheet",
        "detached",
        "thin-rod",
        "level",
        "hollow",
    ],
)
def test_the_refined_grid_gives_the_dense_surface(field: Field, settings: dict[str, Any]) -> None:
    refined = ExtractionSettings(depth=7, **settings)
    dense = ExtractionSettings(depth=7, level=refined.level, coarse_depth=7)
    sparse, full = evaluate_grid(field, refined), evaluate_grid(field, dense)
    assert full.num_queries == 129**3
    assert sparse.num_queries == int(sparse.is_evaluated.sum()) < 129**3 / 5
    assert torch.equal(sparse.values[sparse.is_evaluated], full.values[sparse.is_evaluated])
    assert torch.equal(sparse.values > refined.level, full.values > refined.level)
    found, expected = mesh_from_grid(sparse.values, refined), mesh_from_grid(full.values, dense)
    assert np.array_equal(found.vertices, expected.vertices)
    assert np.array_equal(found.faces, expected.faces)


def test_without_safety_the_thin_plate_is_missed() -> None:
    """Shows that the margin and the slack above are what finds it."""
    plate = box((1.2, 1.2, 0.02), (0.0, 0.0, 0.033))
    with pytest.raises(EmptySurfaceError):
        extract_mesh(plate, ExtractionSettings(depth=7, slack=0.0, margin=0))


def test_a_sphere_at_129_needs_a_ninth_of_the_dense_queries() -> None:
    assert evaluate_grid(sphere(0.8)).num_queries <= 129**3 / 9


def test_nothing_is_refined_in_vain_beside_a_plane() -> None:
    """Beside the faces of a solid, crossings alone decide: the slack adds edges and corners at most."""
    solid = box((1.2, 1.2, 1.2), (0.01, 0.01, 0.01))
    by_slack, by_signs = (
        evaluate_grid(solid, ExtractionSettings(depth=6, margin=0, slack=slack)).num_queries for slack in (0.5, 0.0)
    )
    assert by_signs <= by_slack < 1.05 * by_signs


def test_the_field_is_asked_in_chunks() -> None:
    sizes = []

    def field(points: Tensor) -> Tensor:
        sizes.append(len(points))
        assert points.dtype == torch.float32
        return sphere(0.6)(points).half()

    grid = evaluate_grid(field, ExtractionSettings(depth=5, coarse_depth=3, chunk_size=500))
    assert max(sizes) == 500
    assert sum(sizes) == grid.num_queries
    whole = evaluate_grid(field, ExtractionSettings(depth=5, coarse_depth=3))
    assert torch.equal(grid.values, whole.values)


def test_settings_that_cannot_be_are_refused() -> None:
    for name, value in (("depth", 0), ("coarse_depth", 0), ("margin", -1), ("slack", -0.5), ("chunk_size", 0)):
        with pytest.raises(ValueError, match=f"{name} is {value}, expected at least"):
            ExtractionSettings(**{name: value})
    with pytest.raises(ValueError, match=r"bound is 0\.0, expected a positive number"):
        ExtractionSettings(bound=0.0)
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"min_piece is {share}, expected 0 to below 1"):
            ExtractionSettings(min_piece=share)
    with pytest.raises(ValueError, match=r"min_piece is 0\.1, expected 0 where is_closed is False"):
        ExtractionSettings(min_piece=0.1, is_closed=False)
    with pytest.raises(ValueError, match="max_faces is 3, expected at least 4"):
        ExtractionSettings(max_faces=3)
