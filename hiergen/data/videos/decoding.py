"""Frames of a video file as a player shows them: upright, with square pixels, at their times. Reading is by PyAV.

Letters: `t h w` a clip.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from hiergen.data.images.files import MAX_PIXELS
from hiergen.data.images.modes import to_color
from hiergen.data.images.pixels import center_crop
from hiergen.environment import require

#: A frame that would be repeated more often, at the rate asked for, has a time stamp that is wrong.
MAX_REPEATS = 10_000
#: How frames are turned, by the signs of a display matrix: x' = a x + c y, y' = b x + d y, with y downwards.
_TURNS: dict[tuple[int, ...], Image.Transpose | None] = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


def read_frames(
    path: str | Path, *, size: int, max_frames: int | None = None, fps: float | int | None = None
) -> UInt8[Tensor, "3 t h w"]:
    """Return the frames of a video file from its start, upright, with square pixels, center-cropped to `size` x `size`.

    Args:
        path: The file; its first video stream is read, cover pictures aside.
        size: Height and width in pixels; see `hiergen.data.images.pixels.center_crop`.
        max_frames: Largest number of frames to return; None returns all.
        fps: Frames per second to return, from 0 on: each frame is shown from the nearest of these times to that of the next frame, so
            frames are left out or repeated. None returns every frame of the file once, whatever its time.

    Raises:
        ValueError: If `fps` is not above 0; if the file is missing, damaged, too large in pixels, holds no frame of video, or lacks the
            times that `fps` needs; the file is named.
        ImportError: If PyAV is not installed.
    """
    if fps is not None and not 0 < fps < math.inf:
        raise ValueError(f"fps is {fps}, expected above 0, or None for every frame of the file")
    av = require_pyav()
    frames: list[np.ndarray] = []
    try:
        # A file may name others to be read; none of them on a network.
        with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
            stream = _video_stream(av, container)
            decoded = container.decode(stream)
            for frame, count in _once(decoded) if fps is None else _at_rate(decoded, stream, float(fps)):
                pixels = np.asarray(center_crop(_picture(frame, stream), size))
                frames += [pixels] * min(count, count if max_frames is None else max_frames - len(frames))
                if len(frames) == max_frames:
                    break
    # PyAV raises its own errors, all of them OSError or ValueError.
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise ValueError(f"video {str(path)!r} cannot be read: {error}") from error
    if not frames:
        raise ValueError(f"video {str(path)!r} cannot be read: it holds no frame")
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).contiguous()


def _video_stream(av: ModuleType, container: Any) -> Any:
    streams = container.streams.video
    found = [stream for stream in streams if not stream.disposition & av.stream.Disposition.attached_pic]
    if found:
        return found[0]
    if streams:
        raise ValueError("it has no video stream, only a cover picture")
    kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
    raise ValueError(f"it has no video stream, only {kinds}")


def _once(frames: Iterator[Any]) -> Iterator[tuple[Any, int]]:
    return ((frame, 1) for frame in frames)


def _at_rate(frames: Iterator[Any], stream: Any, fps: float) -> Iterator[tuple[Any, int]]:
    """Yield each frame that is shown at a whole number of ticks, with the number of them."""
    rate = stream.average_rate or stream.guessed_rate
    origin, end, tick = 0.0, 0.0, 0
    shown = None
    for number, frame in enumerate(frames):
        if frame.time is None and not rate:
            raise ValueError("it has neither time stamps nor a frame rate, which fps needs; leave fps at None")
        start = float(number / rate) if frame.time is None else frame.time
        origin = start if shown is None else origin
        nearest = _tick(start - origin, fps, tick)
        if nearest > tick:
            yield shown, nearest - tick
            tick = nearest
        shown = frame
        lasts = float((frame.duration or 0) * (frame.time_base or 0)) or float(1 / rate if rate else 0)
        end = start + lasts
    # Of a file with frames one is returned, however short it is.
    last = max(_tick(end - origin, fps, tick), 1)
    if shown is not None and last > tick:
        yield shown, last - tick


def _tick(seconds: float, fps: float, before: int) -> int:
    nearest = math.floor(seconds * fps + 0.5)
    if nearest - before > MAX_REPEATS:
        raise ValueError(f"its time stamps leave a gap of {(nearest - before) / fps:,.0f} s")
    return nearest


def _picture(frame: Any, stream: Any) -> Image.Image:
    """Return a frame in RGB as it is meant to be seen."""
    ratio = float(stream.sample_aspect_ratio or 1)
    # Enlarged along one side, so that nothing is lost.
    width, height = round(frame.width * max(ratio, 1)), round(frame.height * max(1 / ratio, 1))
    if max(width * height, frame.width * frame.height) > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels, at most {MAX_PIXELS:,} are read")
    if any(component.is_alpha for component in frame.format.components):
        picture = to_color(Image.fromarray(frame.to_ndarray(format="rgba")))
    else:
        picture = frame.to_image()
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    turn = _turn(frame)
    return picture if turn is None else picture.transpose(turn)


def _turn(frame: Any) -> Image.Transpose | None:
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
            is_along = abs(a) + abs(d) >= abs(b) + abs(c)
            signs = (a, 0, 0, d) if is_along else (0, b, c, 0)
            return _TURNS.get(tuple(int(np.sign(value)) for value in signs))
    return None


def require_pyav() -> ModuleType:
    """Return PyAV.

    Raises:
        ImportError: If it is not installed.
    """
    require("av.error", "video", "a video file")
    return require("av", "video", "a video file")
