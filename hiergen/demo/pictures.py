"""Pictures in and out of the demo: reading uploads, examples, tokens as colors, what a level adds."""

from __future__ import annotations

import colorsys
import functools
import math
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hiergen.data.images.digits import load_digits
from hiergen.data.images.files import read_image
from hiergen.data.images.pixels import center_crop, on_white_square, to_pictures, to_tensor
from hiergen.data.shapes.dataset import TEST_OFFSET
from hiergen.data.shapes.procedural import PROCEDURAL_CLASSES, procedural_shape
from hiergen.geometry.renders import render_mesh
from hiergen.pyramid import LevelSpec

#: Side of the square that stands for a token, in pixels.
CELL = 14
#: Number of tokens per row, for a level without a grid.
ROW = 16
#: Larger pictures of objects are made smaller: no image encoder reads more.
VIEW_SIZE = 512
#: Where the example views of shapes are seen from, in radians: azimuth and elevation.
VIEWPOINT = (0.0, math.radians(15))
#: Colors of neighboring ids differ by this share of the color circle, the golden ratio: any few ids are far apart.
_TURN = 0.618033988749895


def open_upload(data: bytes, *, size: int, max_pixels: int) -> Tensor:
    """Return an uploaded picture as a model sees it: `(1, 3, size, size)` in [-1, 1], the central square.

    Raises:
        ValueError: If it is no picture, is damaged, or has more than `max_pixels` pixels (before any is decoded).
    """
    return to_tensor(center_crop(_read_upload(data, max_pixels, "RGB"), size))[None]


def open_whole(data: bytes, *, longest: int, max_pixels: int) -> Tensor:
    """Return an uploaded picture of any shape, `(1, 3, h, w)` in [-1, 1], scaled down where a side is above `longest` pixels.

    Raises:
        ValueError: If it is no picture, is damaged, or has more than `max_pixels` pixels (before any is decoded).
    """
    picture = _read_upload(data, max_pixels, "RGB")
    # Never enlarges.
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return to_tensor(picture)[None]


def _read_upload(data: bytes, max_pixels: int, mode: Literal["RGB", "RGBA"]) -> Image.Image:
    try:
        return read_image("", data=data, max_pixels=max_pixels, mode=mode)
    except ValueError as error:
        reason = str(error).partition(": ")[2]
        raise ValueError(f"your file cannot be read as a picture: {reason}") from error


@functools.lru_cache(maxsize=4)
def digit_examples(size: int) -> tuple[Tensor, list[Image.Image]]:
    """Return a held-out digit of each class, `(10, 3, size, size)` in [-1, 1], and as pictures."""
    digits = load_digits("test", size=size)
    chosen = torch.cat([torch.where(digits.labels == label)[0][:1] for label in range(len(digits.classes))])
    images = digits.images[chosen]
    return images, to_pictures(images)


def open_view(data: bytes, *, max_pixels: int) -> Image.Image:
    """Return an uploaded picture of an object on a white square, of at most `VIEW_SIZE` pixels per side.

    Raises:
        ValueError: As `open_upload`.
    """
    picture = _read_upload(data, max_pixels, "RGBA")
    picture.thumbnail((VIEW_SIZE, VIEW_SIZE))
    return on_white_square(picture)


@functools.lru_cache(maxsize=1)
def shape_views(size: int = 128) -> list[Image.Image]:
    """Return a view of a held-out procedural shape of each class.

    Raises:
        ImportError: If a library for meshes is not installed.
    """
    azimuth, elevation = VIEWPOINT
    shapes = [procedural_shape(TEST_OFFSET + number) for number in range(len(PROCEDURAL_CLASSES))]
    return [Image.fromarray(render_mesh(shape.to_mesh(), size, azimuth, elevation)) for shape in shapes]


def draw_tokens(tokens: Tensor, spec: LevelSpec) -> Image.Image:
    """Return a picture of one level's tokens, one square per token, in the order of its grid or in rows; those of a clip are side by side.

    The color of an id is its own (equal ids, equal colors). That of a vector is its three main directions among the tokens of
    this level, each over its range: colors of one picture compare with each other, not with those of another.

    Args:
        tokens: `(n,)` ids or `(n, d)` vectors.
        spec: Spec of the level.
    """
    if spec.is_discrete:
        colors = np.array([colorsys.hls_to_rgb(int(i) * _TURN % 1, 0.35 + int(i) * 7 % 4 / 10, 0.65) for i in tokens])
    else:
        colors = _main_directions(tokens).numpy()
    columns = spec.grid[-1] if spec.grid is not None else min(ROW, spec.num_tokens)
    rows = math.ceil(spec.num_tokens / columns)
    cells: np.ndarray = np.full((rows * columns, 4), 0.0)
    cells[: spec.num_tokens, :3], cells[: spec.num_tokens, 3] = colors, 1
    cells = cells.reshape(rows, columns, 4)
    if spec.grid is not None and len(spec.grid) == 3:
        # A clear column after the rows of each moment.
        moments = np.pad(cells.reshape(*spec.grid, 4), ((0, 0), (0, 0), (0, 1), (0, 0)))
        cells = np.concatenate(list(moments), axis=1)[:, :-1]
    large = np.kron((cells * 255).round().astype(np.uint8), np.ones((CELL, CELL, 1), np.uint8))
    # A clear line between neighbors, which may be equal; cells without a token are clear as well.
    large, alpha = large[..., :3], large[..., 3]
    alpha[CELL - 1 :: CELL] = 0
    alpha[:, CELL - 1 :: CELL] = 0
    return Image.fromarray(np.dstack([large, alpha])[:-1, :-1])


def _main_directions(tokens: Tensor) -> Tensor:
    centered = (tokens - tokens.mean(dim=0)).double()
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    values = centered @ directions[:3].T
    values = torch.nn.functional.pad(values, (0, 3 - values.shape[1]))
    low, high = values.amin(dim=0), values.amax(dim=0)
    return torch.where(high > low, (values - low) / (high - low).clamp_min(1e-12), 0.5)


def difference(after: Tensor, before: Tensor) -> Tensor:
    """Return what a level adds, `(after - before) / 2`, as an image in [-1, 1]: mid grey is no change."""
    return (after - before) / 2


def montage(pictures: list[Image.Image]) -> Image.Image:
    """Return pictures of one size as a sheet, about square, with a thin white line between."""
    width, height = pictures[0].size
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    gap = 1 if len(pictures) > 1 else 0
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * (width + gap), number // columns * (height + gap)))
    return sheet
