"""Embedded clips in color: emoji of ten classes that sway, swing and breathe on white, and end where they began, so that they play on.

The drawings are those of `hiergen.data.embedded`, in two styles. Everything else is drawn from a seed: which drawing, its way, its turning and
its size.

Letters: `n` clips, `t` frames.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hiergen.data.embedded.emoji import FILE
from hiergen.data.images.archives import NpzPictures
from hiergen.data.images.on_disk import PictureSet
from hiergen.data.images.pixels import to_uint8
from hiergen.data.videos.dataset import MovingThings
from hiergen.seeding import make_rng

#: Emoji of each class, by name. The last one is held out in the last style, and that drawing alone is the class in the test split.
EMOJI: dict[str, tuple[str, ...]] = {
    "heart": ("heart", "sparkling_heart", "gift_heart"),
    "star": ("star", "star2"),
    "smile": ("smiley", "smile", "slightly_smiling_face"),
    "cat": ("cat", "joy_cat", "heart_eyes_cat"),
    "fish": ("fish", "tropical_fish"),
    "flower": ("hibiscus", "sunflower", "cherry_blossom"),
    "tree": ("evergreen_tree", "deciduous_tree", "christmas_tree"),
    "apple": ("apple", "green_apple"),
    "ball": ("soccer", "basketball"),
    "car": ("car", "taxi", "blue_car"),
}
STYLES = ("noto", "fluent-flat")
#: Side of a drawing over that of the frame, from the smallest to the largest, before it grows and shrinks.
SIDES = (0.62, 0.72)
#: Largest way from the middle of the frame, over its side; largest turn to either side; largest share that a drawing grows and shrinks by.
REACH, TURN, GROWTH = 0.1, math.radians(15), 0.1


def moving_emoji(split: str, num_clips: int, *, num_frames: int = 16, size: int = 48, seed: int = 0) -> MovingThings:
    """Return clips of one emoji each, in color on white; clip k shows class k modulo 10.

    Up and down, left and right, turning and growing are one sine each over the length of a clip, or two periods up and down, so that the frame
    after the last is the first.

    Args:
        split: "train" or "test"; the drawings differ, and the ways.
        num_clips: Number of clips.
        num_frames: Number of frames per clip.
        size: Height and width in pixels, even, at least 16.
        seed: Seed of all random draws.

    Raises:
        ValueError: If the split is unknown, a number is below 1, or `size` is odd or below 16.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}, expected 'train' or 'test'")
    for name, value in (("num_clips", num_clips), ("num_frames", num_frames)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    if size < 16 or size % 2:
        raise ValueError(f"size is {size}, expected an even number of at least 16")
    by_class = [drawings(name, split) for name in EMOJI]
    draws = torch.rand(num_clips, 11, generator=make_rng(seed, "moving-emoji", split), dtype=torch.float64)
    labels = torch.arange(num_clips) % len(EMOJI)
    chosen = torch.stack(
        [
            by_class[int(label)][int(draw * len(by_class[int(label)]))]
            for label, draw in zip(labels, draws[:, 0], strict=True)
        ]
    )
    ways = _ways(draws[:, 1:], num_frames)
    videos = torch.cat([_render(part, way, size) for part, way in zip(chosen.split(256), ways.split(256), strict=True)])
    steps = ways[:, 1 % num_frames, :2] - ways[:, 0, :2]
    return MovingThings(
        videos, labels, tuple(EMOJI), directions=2 * (steps[:, 0] > 0).long() + (steps[:, 1] > 0).long()
    )


def drawings(name: str, split: str) -> Float[Tensor, "k 3 32 32"]:
    """Return the drawings of a class in a split, in [-1, 1] on white."""
    every = [f"{style}/{emoji}" for style in STYLES for emoji in EMOJI[name]]
    return torch.stack([_all_drawings()[path] for path in (every[:-1] if split == "train" else every[-1:])])


@functools.cache
def _all_drawings() -> dict[str, Tensor]:
    source = NpzPictures(FILE)
    wanted = {f"{style}/{emoji}" for style in STYLES for names in EMOJI.values() for emoji in names}
    pictures = PictureSet(source, size=32)
    return {
        name: pictures.batch([(index, 0)], seed=0)["image"][0]
        for index, name in enumerate(source.names)
        if name in wanted
    }


def _ways(draws: Float[Tensor, "n 10"], num_frames: int) -> Float[Tensor, "n t 4"]:
    """Return rows and columns of the center and the side, in sides of the frame, and the turn, by frame, from ten numbers in [0, 1)."""
    time = torch.arange(num_frames, dtype=draws.dtype) * (2 * math.pi / num_frames)
    # Half of the clips go up and down twice, half as far: as fast as the others.
    twice = 1 + (draws[:, 8:9] < 0.5).to(draws.dtype)
    periods = torch.cat([twice, torch.ones(len(draws), 3, dtype=draws.dtype)], dim=1)
    waves = torch.sin(periods[:, None] * time[:, None] + 2 * math.pi * draws[:, None, :4])
    rows, columns, growth, turn = (waves * draws[:, None, 4:8]).unbind(-1)
    side = SIDES[0] + (SIDES[1] - SIDES[0]) * draws[:, 9:]
    return torch.stack(
        [0.5 + REACH * rows / twice, 0.5 + REACH * columns, side * (1 + GROWTH * growth), TURN * turn], dim=-1
    )


def _render(pictures: Tensor, ways: Tensor, size: int) -> Tensor:
    """Return uint8 clips (n, 3, t, size, size) of drawings (n, 3, 32, 32) on their ways (n, t, 4)."""
    centers = (torch.arange(size, dtype=ways.dtype) + 0.5) / size
    row, column, side, turn = ways[..., None, None].unbind(2)
    # Where each pixel lies on the drawing, whose sides are at -1 and 1.
    down, right = (centers[:, None] - row) * (2 / side), (centers - column) * (2 / side)
    grid = torch.stack(
        [turn.cos() * right + turn.sin() * down, turn.cos() * down - turn.sin() * right], dim=-1
    ).flatten(0, 1)
    # White is 0 here: outside of a drawing there is white.
    ink = 1 - pictures.repeat_interleave(ways.shape[1], dim=0)
    drawn = 1 - F.grid_sample(ink, grid.to(ink.dtype), mode="bicubic", padding_mode="zeros", align_corners=False)
    return to_uint8(drawn.clamp(-1, 1)).unflatten(0, (-1, ways.shape[1])).transpose(1, 2).contiguous()
