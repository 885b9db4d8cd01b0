"""Pictures for people: grids of images with captions, curves, and texts in chunks. Colors are the same in all of them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hiergen.files import atomic_path

#: Titles of panels, where others than the names of what they show.
TITLES = {"psnr": "PSNR (dB)", "ssim": "SSIM"}
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
        path: Path of the PNG file.
        rows: One `(n, c, h, w)` batch of images in [-1, 1] per row, all of one size; shorter rows end in white.
        row_labels: Caption of each row.
        column_labels: Caption of each column.
        title: Title above everything.
        scale: Height of an image in inches.
    """
    from matplotlib.figure import Figure

    count, (height, width) = max(len(row) for row in rows), rows[0].shape[-2:]
    # One axis for all of them: one for each takes matplotlib seconds.
    gap = max(1, round(0.04 * height))
    canvas = np.ones((len(rows) * (height + gap) - gap, count * (width + gap) - gap, 3), np.float32)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            pixels = image.detach().float().clamp(-1, 1).add(1).div(2).permute(1, 2, 0).cpu().numpy()
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = pixels
    extra = 0.4 if title else 0.1
    # Room for the captions, in inches.
    margin = max(1.2, 0.3 + 0.065 * max(map(len, row_labels or [""])))
    figure = Figure(figsize=(count * scale * width / height + margin, len(rows) * scale + extra), layout="constrained")
    axis = figure.subplots()
    axis.imshow(canvas, interpolation="nearest")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelsize=8, labelcolor=INK, top=False, labeltop=True, bottom=False, labelbottom=False)
    places = [
        [k * (side + gap) + side / 2 for k in range(many)] for many, side in ((len(rows), height), (count, width))
    ]
    # Names of classes may hold a "$", which is no formula.
    axis.set_yticks(places[0] if row_labels else [], row_labels or [], parse_math=False)
    axis.set_xticks(places[1] if column_labels else [], column_labels or [], parse_math=False)
    if title:
        figure.suptitle(title, fontsize=10, color=INK, parse_math=False)
    _save(figure, path)


#: x and y of the points; where a third is given, how far the error bar of each point reaches, 0 for none.
Curve = tuple[Sequence[float], Sequence[float]] | tuple[Sequence[float], Sequence[float], Sequence[float]]


def save_curves(
    path: str | Path,
    panels: Mapping[str, Mapping[str, Curve]],
    *,
    x_label: str = "samples seen",
    logarithmic: Container[str] = (),
    shows_points: bool = False,
    point_labels: Mapping[float, str] = MappingProxyType({}),
) -> None:
    """Write one panel per key, each with named curves.

    Args:
        path: Path of the PNG file.
        panels: Named curves of each panel, by the panel's title.
        x_label: Label below each panel.
        logarithmic: Titles of the panels whose y axis is logarithmic, if all their values are above zero.
        shows_points: Mark the points and put the ticks of a logarithmic x axis at them.
        point_labels: What stands below the number of a tick, by its place.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.0), layout="constrained")
    for axis, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for color, (name, (x, y, *bars)) in zip(PALETTE, curves.items(), strict=False):
            axis.plot(x, y, label=name, color=color, linewidth=1.6, marker="o" if shows_points else None, markersize=4)
            if bars and any(bars[0]):
                axis.errorbar(x, y, bars[0], fmt="none", ecolor=color, capsize=3, linewidth=1.2)
        if shows_points:
            places = sorted({float(value) for x, *_ in curves.values() for value in x})
            axis.set_xscale("log", base=2)
            places = _apart(places, 0.1 if point_labels else 0.04)
            texts = [f"{value:,.0f}\n{point_labels.get(value, '')}".rstrip() for value in places]
            # A text of two lines needs a fifth of the axis, one of one line less.
            is_narrow = len(_apart(places, 0.2 if point_labels else 0.1)) < len(places)
            axis.set_xticks(places, texts, rotation=45 if is_narrow else 0)
            axis.minorticks_off()
        if title in logarithmic and all(value > 0 for _, y, *_ in curves.values() for value in y):
            axis.set_yscale("log", nonpositive="clip")
        axis.set_title(TITLES.get(title, title), fontsize=10, color=INK)
        axis.set_xlabel(x_label, fontsize=8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        if len(curves) > 1:
            axis.legend(fontsize=8, frameon=False)
    _save(figure, path)


def _apart(places: Sequence[float], share: float) -> list[float]:
    """Return the increasing places without those that are nearer to the one before than a share of a logarithmic axis."""
    kept = list(places[:1])
    for place in places[1:]:
        if np.log(place / kept[-1]) >= share * np.log(places[-1] / places[0]) * (1 - 1e-6):
            kept.append(place)
    return kept


def log_curves(log: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, tuple[list[float], list[float]]]:
    """Return the curves of some terms of a training log."""
    return {
        name: ([line["samples"] for line in log if name in line], [line[name] for line in log if name in line])
        for name in names
    }


def save_chunks(
    path: str | Path,
    symbols: Sequence[str],
    stages: Mapping[str, Sequence[bool]],
    *,
    columns: int = 72,
    title: str | None = None,
) -> None:
    """Write a text with its chunks as one PNG: below every line of it a strip per stage, in which neighboring chunks differ in color.

    Args:
        path: Path of the PNG file.
        symbols: One printed character per symbol (`byte_symbols`).
        stages: By the name of a stage, whether one of its chunks begins at a symbol (`HNet.find_boundaries`), outer stages first.
        columns: Symbols of a line.
        title: Title above everything.

    Raises:
        ValueError: If a stage is of another number of symbols, or there is nothing to show.
    """
    for name, begins in stages.items():
        if len(begins) != len(symbols):
            raise ValueError(f"stages[{name!r}] is of {len(begins)} symbols, expected {len(symbols)}, one per symbol")
    if not symbols or not stages:
        raise ValueError(f"there are {len(symbols)} symbols and {len(stages)} stages, expected some of each")
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    lines, height = -(-len(symbols) // columns), 1 + len(stages)
    canvas = np.ones((lines * height, columns, 3), np.float32)
    for row, begins in enumerate(stages.values(), start=1):
        chunk = np.cumsum(np.asarray(begins, dtype=np.int64))
        for place, number in enumerate(chunk.tolist()):
            canvas[place // columns * height + row, place % columns] = to_rgb(PALETTE[number % 2 + 2 * (row % 2)])
    extra = 0.4 if title else 0.1
    figure = Figure(figsize=(columns * 0.11 + 1.2, lines * height * 0.2 + extra), layout="constrained")
    axis = figure.subplots()
    axis.imshow(canvas, interpolation="nearest", aspect="auto")
    for place, symbol in enumerate(symbols):
        axis.text(
            place % columns, place // columns * height, symbol,
            ha="center", va="center", fontsize=8, family="monospace", color=INK, parse_math=False,
        )  # fmt: skip
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelsize=7, labelcolor=INK)
    axis.set_xticks([])
    axis.set_yticks(range(lines * height), ["", *stages] * lines, parse_math=False)
    if title:
        figure.suptitle(title, fontsize=10, color=INK, parse_math=False)
    _save(figure, path)


def byte_symbols(text: bytes) -> list[str]:
    """Return a printed character for each byte: that of UTF-8 at its first byte, dots for further bytes and for what cannot be printed."""
    shown: list[str] = []
    for symbol in text.decode("utf-8", errors="surrogateescape"):
        printed = {"\n": "↵"}.get(symbol, symbol if symbol.isprintable() else "·")
        shown += [printed] + ["·"] * (len(symbol.encode("utf-8", errors="surrogateescape")) - 1)
    return shown


def _save(figure: Any, path: str | Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, facecolor="white")


def as_rows(images: Tensor, columns: int) -> list[Tensor]:
    """Return a batch of images cut into rows of `columns`."""
    return list(torch.split(images, columns))
