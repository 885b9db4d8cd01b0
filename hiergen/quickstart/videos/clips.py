"""The clips of the video quickstart: moving digits, large in the frame, so that most tokens show something."""

from __future__ import annotations

from collections.abc import Sequence

from hiergen.data.videos.moving_digits import MovingDigits, moving_digits


def digit_size(size: int) -> int:
    """Return the side of the digits in frames of `size` pixels: two thirds, 16 pixels in frames of 24."""
    return 2 * size // 3


def quickstart_clips(split: str, num_clips: int, video_size: Sequence[int], *, seed: int) -> MovingDigits:
    """Return clips of digits of `digit_size`.

    Args:
        split: "train" or "test".
        num_clips: Number of clips.
        video_size: Frames, rows and columns, as many as rows.
        seed: Seed of all draws.
    """
    frames, size, _ = video_size
    return moving_digits(split, num_clips, num_frames=frames, size=size, digit_size=digit_size(size), seed=seed)
