"""The clips of the video quickstart: moving digits, large in the frame, so that most tokens show something, or moving emoji."""

from __future__ import annotations

from collections.abc import Sequence

from hiergen.data.videos.dataset import MovingThings
from hiergen.data.videos.moving_digits import moving_digits
from hiergen.data.videos.moving_emoji import moving_emoji


def digit_size(size: int) -> int:
    """Return the side of the digits in frames of `size` pixels: two thirds, 16 pixels in frames of 24."""
    return 2 * size // 3


def quickstart_clips(
    split: str, num_clips: int, video_size: Sequence[int], *, seed: int, data: str = "digits"
) -> MovingThings:
    """Return clips of the split "train" or "test", of `video_size` (frames, rows, columns): digits of `digit_size`, or emoji."""
    frames, size, _ = video_size
    if data == "emoji":
        return moving_emoji(split, num_clips, num_frames=frames, size=size, seed=seed)
    return moving_digits(split, num_clips, num_frames=frames, size=size, digit_size=digit_size(size), seed=seed)
