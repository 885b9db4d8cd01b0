"""The clips of the video quickstart: moving digits, large in the frame, so that most tokens show something."""

from __future__ import annotations

from collections.abc import Sequence

from hiergen.data.videos.moving_digits import MovingDigits, moving_digits


def digit_size(size: int) -> int:
    """Return the side of the digits in frames of `size` pixels: two thirds, 16 pixels in frames of 24."""
    return 2 * size // 3


def quickstart_clips(split: str, num_clips: int, video_size: Sequence[int], *, seed: int) -> MovingDigits:
    """Return clips of the split "train" or "test", of `video_size` (frames, rows, columns), with digits of `digit_size`."""
    frames, size, _ = video_size
    return moving_digits(split, num_clips, num_frames=frames, size=size, digit_size=digit_size(size), seed=seed)
