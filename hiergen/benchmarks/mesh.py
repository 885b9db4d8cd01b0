"""`hiergen bench mesh`: how many points surface extraction evaluates, and how long it takes, beside the dense grid.

An untrained model has no surface, so the decoder does its full work and a known shape gives the values.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from hiergen.benchmarks.measuring.timing import describe_machine, random_model, show, timed
from hiergen.benchmarks.settings import MeshSettings
from hiergen.environment import choose_device
from hiergen.geometry.field_grid import ExtractionSettings, Field, evaluate_grid
from hiergen.geometry.surface_extraction import mesh_from_grid
from hiergen.pyramid import TokenPyramid
from hiergen.tokenizers.pyramid_vae.field import ShapeField
from hiergen.tokenizers.pyramid_vae.model import PyramidVAE


def run(settings: MeshSettings) -> dict[str, Any]:
    """Measure, print a table, and return all numbers.

    Returns:
        JSON values: the settings, the machine, `tokens_s` (the part of the decoder that runs once per shape: repeating it for
        each chunk would cost that much per chunk), and under "rows" for each shape and grid the queries and seconds of both
        ways, their ratios, and whether the meshes are equal (None where the dense grid was not evaluated in full).

    Raises:
        ValueError: If the preset is no `PyramidVAE`.
    """
    device = choose_device(settings.device)
    tokens_s, decoded = _decode(settings, device)
    rows = [_measure(decoded, shape, depth, device, settings) for shape in settings.shapes for depth in settings.depths]
    machine = describe_machine(device)
    _print_table(settings, machine, tokens_s, rows)
    return {"settings": dataclasses.asdict(settings), "machine": machine, "tokens_s": tokens_s, "rows": rows}


@torch.no_grad()
def _decode(settings: MeshSettings, device: torch.device) -> tuple[float, ShapeField]:
    """Return the seconds of reading the tokens, warmed up, and the field of random tokens."""
    model: PyramidVAE = random_model(settings.preset, "PyramidVAE", seed=settings.seed)
    spec = model.specs[-1]
    tokens = torch.randn(1, spec.num_tokens, spec.dim, generator=torch.Generator().manual_seed(settings.seed))
    nn.Module.to(model, device)
    pyramid = TokenPyramid((tokens.to(device),), (spec,))
    timed(lambda: model.decode(pyramid), device)
    return timed(lambda: model.decode(pyramid), device)


def _measure(
    decoded: ShapeField, shape: str, depth: int, device: torch.device, settings: MeshSettings
) -> dict[str, Any]:
    analytic = _SHAPES[shape]
    model = decoded.shape(0)

    def field(points: Tensor) -> Tensor:
        return torch.where(model(points).isnan(), torch.nan, analytic(points))

    refined = ExtractionSettings(depth=depth, coarse_depth=settings.coarse_depth, chunk_size=settings.chunk_size)
    dense = dataclasses.replace(refined, coarse_depth=depth)
    evaluate_grid(field, dataclasses.replace(refined, depth=2), device=device)
    seconds, grid = timed(lambda: evaluate_grid(field, refined, device=device), device)
    dense_queries = (2**depth + 1) ** 3
    is_equal = None
    if settings.dense_share == 1:
        dense_s, full = timed(lambda: evaluate_grid(field, dense, device=device), device)
        meshes = [mesh_from_grid(values, refined) for values in (grid.values, full.values)]
        is_equal = all(
            getattr(meshes[0], part).tolist() == getattr(meshes[1], part).tolist() for part in ("vertices", "faces")
        )
    else:
        dense_s = _sampled_dense_seconds(field, dense_queries, device, settings)
    return {
        "shape": shape,
        "nodes": 2**depth + 1,
        "queries": grid.num_queries,
        "dense_queries": dense_queries,
        "times_fewer": dense_queries / grid.num_queries,
        "seconds": seconds,
        "dense_s": dense_s,
        "times_faster": dense_s / seconds,
        "is_equal": is_equal,
    }


@torch.no_grad()
def _sampled_dense_seconds(field: Field, queries: int, device: torch.device, settings: MeshSettings) -> float:
    """Return the time of the dense grid's queries, scaled up from `dense_share` of them (at least one chunk)."""
    count = max(int(queries * settings.dense_share), min(queries, settings.chunk_size))
    points = torch.rand(count, 3, device=device) * 2.1 - 1.05
    # The first chunk of this size also pays for memory that later ones find.
    field(points[: settings.chunk_size])
    seconds, _ = timed(lambda: [field(part) for part in points.split(settings.chunk_size)], device)
    return seconds * queries / count


def _sphere(points: Tensor) -> Tensor:
    return 0.8 - points.norm(dim=-1)


def _table(points: Tensor) -> Tensor:
    top = _box(points, (0.0, 0.0, 0.5), (0.8, 0.5, 0.03))
    # The legs are mirror images: one of them serves all four.
    leg = _box(torch.cat((points[:, :2].abs(), points[:, 2:]), dim=1), (0.7, 0.4, -0.1), (0.04, 0.04, 0.6))
    return torch.maximum(top, leg)


def _box(points: Tensor, center: tuple[float, ...], half_sides: tuple[float, ...]) -> Tensor:
    away = (points - points.new_tensor(center)).abs() - points.new_tensor(half_sides)
    return -(away.clamp(min=0).norm(dim=-1) + away.amax(dim=-1).clamp(max=0))


#: Signed distances, positive inside.
_SHAPES: dict[str, Field] = {"sphere": _sphere, "table": _table}


def _print_table(settings: MeshSettings, machine: dict[str, Any], tokens_s: float, rows: list[dict[str, Any]]) -> None:
    table = Table(
        title=f"{settings.preset}, {machine['device']}, {machine['threads']} threads",
        caption=f"Reading the tokens, once per shape: {1000 * tokens_s:.1f} ms. Meshing is not in the times."
        + ("" if settings.dense_share == 1 else f" Dense times from {settings.dense_share:.1%} of the grid."),
    )
    for column in ("shape", "nodes", "queries", "x fewer", "s", "dense s", "x faster", "same mesh"):
        table.add_column(column, justify="left" if column == "shape" else "right")
    for row in rows:
        table.add_row(
            row["shape"],
            str(row["nodes"]),
            f"{row['queries']:,}",
            f"{row['times_fewer']:.1f}",
            f"{row['seconds']:.2f}",
            f"{row['dense_s']:.2f}",
            f"{row['times_faster']:.1f}",
            {True: "yes", False: "NO", None: "-"}[row["is_equal"]],
        )
    show(table)
