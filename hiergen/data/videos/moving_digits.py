"""The embedded set of clips: real handwritten digits that move straight and bounce off the edges.

The digits are those of `hiergen.data.images.digits`, with its split. Everything else is drawn from a seed: which digit, where it starts, its
direction and speed. What quickstart, tests and demos of video run on, without a download.

Letters: `n` clips, `t` frames.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hiergen.data.images.digits import NUM_CLASSES, load_digits
from hiergen.data.images.pixels import to_uint8
from hiergen.data.videos.dataset import MovingThings
from hiergen.seeding import make_rng

#: Slowest and fastest speed, in pixels per frame, for frames of 32 pixels.
SPEEDS = (0.25, 0.75)


def moving_digits(
    split: str,
    num_clips: int,
    *,
    num_frames: int = 32,
    size: int = 32,
    digit_size: int | None = None,
    speeds: tuple[float, float] = SPEEDS,
    seed: int = 0,
) -> MovingThings:
    """Return clips of one digit each, grey as RGB; clip k shows class k modulo 10.

    A digit is enlarged from 8 x 8 pixels and placed between pixels where its path is. It flies straight and is reflected at the
    edges of the frame.

    Args:
        split: Split of the digits, "train" or "test"; the paths differ too.
        num_clips: Number of clips.
        num_frames: Number of frames per clip.
        size: Height and width in pixels, even, at least 16.
        digit_size: Height and width of a digit in pixels; None for half of the frame.
        speeds: Slowest and fastest speed, in pixels per frame, for frames of 32 pixels; larger frames are crossed in the same time.
        seed: Seed of all random draws.

    Raises:
        ValueError: If the split is unknown, a number is below 1, `size` is odd or below 16, or a digit does not fit in it.
    """
    for name, value in (("num_clips", num_clips), ("num_frames", num_frames)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    if size < 16 or size % 2:
        raise ValueError(f"size is {size}, expected an even number of at least 16")
    digit_size = size // 2 if digit_size is None else digit_size
    if not 8 <= digit_size <= size:
        raise ValueError(f"digit_size is {digit_size}, expected 8 to size, {size}")
    digits = load_digits(split, size=8)
    rng = make_rng(seed, "moving-digits", split)
    labels = torch.arange(num_clips) % NUM_CLASSES
    by_class = [torch.where(digits.labels == label)[0] for label in range(NUM_CLASSES)]
    draws = torch.rand(num_clips, 5, generator=rng, dtype=torch.float64)
    chosen = torch.stack(
        [
            by_class[int(label)][int(draw * len(by_class[int(label)]))]
            for label, draw in zip(labels, draws[:, 0], strict=True)
        ]
    )
    angle = 2 * math.pi * draws[:, 1]
    speed = (speeds[0] + (speeds[1] - speeds[0]) * draws[:, 2]) * (size / 32)
    velocity = torch.stack([angle.sin(), angle.cos()], dim=1) * speed[:, None]
    room = float(size - digit_size)
    corners = bounce(draws[:, 3:] * room, velocity, num_frames, room)
    videos = torch.cat(
        [
            _render(digits.images[part, :1], path, size, digit_size)
            for part, path in zip(chosen.split(256), corners.split(256), strict=True)
        ]
    )
    directions = 2 * (velocity[:, 0] > 0).long() + (velocity[:, 1] > 0).long()
    return MovingThings(videos, labels, digits.classes, directions=directions)


def bounce(
    start: Float[Tensor, "n 2"], velocity: Float[Tensor, "n 2"], num_frames: int, room: float
) -> Float[Tensor, "n t 2"]:
    """Return the path of points that fly straight inside the square [0, room]^2 and are reflected at its edges."""
    time = torch.arange(num_frames, dtype=start.dtype)
    free = start[:, None] + velocity[:, None] * time[:, None]
    # Reflection unrolls into a walk through mirror images, of period 2 room.
    return room - (free.remainder(2 * room) - room).abs()


def _render(digits: Tensor, corners: Tensor, size: int, digit_size: int) -> Tensor:
    """Return uint8 clips (n, 3, t, h, w) of digits (n, 1, 8, 8) whose top left corners follow paths (n, t, 2)."""
    frames = corners.shape[1]
    centers = torch.arange(size, dtype=corners.dtype) + 0.5
    # Where each pixel lies on the digit, whose sides are at -1 and 1.
    rows, columns = ((centers - corners[..., axis, None]) * (2 / digit_size) - 1 for axis in (0, 1))
    grid = torch.stack(
        [columns[:, :, None].expand(-1, -1, size, -1), rows[..., None].expand(-1, -1, -1, size)], dim=-1
    ).flatten(0, 1)
    ink = (digits.repeat_interleave(frames, dim=0) + 1) / 2
    drawn = F.grid_sample(ink, grid.to(ink.dtype), mode="bicubic", padding_mode="zeros", align_corners=False)
    clips = to_uint8(drawn.clamp(0, 1) * 2 - 1).unflatten(0, (-1, frames)).transpose(1, 2)
    return clips.expand(-1, 3, -1, -1, -1).contiguous()
