"""Pictures for people: grids of images with captions, and curves. Colors are the same in all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiergen.files import atomic_path

INK = "#1c2333"
PALETTE = ("#2f6fde", "#e0763a", "#3a9c6e", "#a04fb5", "#c23b54", "#7c8aa5")


def save_image_grid(
    path: str | Path,
    rows: Sequence[Tensor],
    *,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    title: str | None = None,
    scale: float = 0.55,
) -> None:
    """Write rows of images as one PNG with captions.

    Args:
        path: Where to.
        rows: One `(n, c, h, w)` batch of images in [-1, 1] a row, all of one n.
        row_labels: Caption of each row.
        column_labels: Caption of each column.
        title: Above everything.
        scale: Height of an image in inches.
    """
    columns = rows[0].shape[0]
    width = scale * rows[0].shape[-1] / rows[0].shape[-2]
    figure, axes = _canvas(len(rows), columns, (scale, width), title is not None)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            pixels = image.detach().float().clamp(-1, 1).add(1).div(2).permute(1, 2, 0).cpu().numpy()
            axes[i][j].imshow(pixels, interpolation="nearest")
            if row_labels and j == 0:
                axes[i][j].set_ylabel(row_labels[i], rotation=0, ha="right", va="center", fontsize=8, color=INK)
            if column_labels and i == 0:
                axes[i][j].set_title(column_labels[j], fontsize=8, color=INK)
    if title:
        figure.suptitle(title, fontsize=10, color=INK)
    _save(figure, path)


def save_curves(
    path: str | Path,
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    x_label: str = "samples seen",
) -> None:
    """Write one panel a key, each with named (x, y) curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.0), layout="constrained")
    for axis, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for color, (name, (x, y)) in zip(PALETTE, curves.items(), strict=False):
            axis.plot(x, y, label=name, color=color, linewidth=1.6)
        axis.set_title(title, fontsize=10, color=INK)
        axis.set_xlabel(x_label, fontsize=8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        if len(curves) > 1:
            axis.legend(fontsize=8, frameon=False)
    _save(figure, path)


def log_curves(log: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, tuple[list[float], list[float]]]:
    """Return the curves of some terms of a training log."""
    return {
        name: ([line["samples"] for line in log if name in line], [line[name] for line in log if name in line])
        for name in names
    }


def _canvas(rows: int, columns: int, size: tuple[float, float], has_title: bool) -> tuple[Any, Any]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(columns * size[1] + 1.2, rows * size[0] + (0.4 if has_title else 0.1)), layout=layout)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    return figure, axes


def _save(figure: Any, path: str | Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, facecolor="white")


def as_rows(images: Tensor, columns: int) -> list[Tensor]:
    """Return a batch of images cut into rows of `columns`."""
    return list(torch.split(images, columns))
