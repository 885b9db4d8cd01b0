"""Frames of a video file as a player shows them: upright, with square pixels, at their times. Reading is by PyAV.

Letters: `t h w` a clip.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
    frames: list[np.ndarray] = []
    with _opened(path) as (decoded, stream):
        for frame, count in _once(decoded) if fps is None else _at_rate(decoded, stream, float(fps)):
            pixels = np.asarray(center_crop(_picture(frame, stream, MAX_PIXELS), size))
            frames += [pixels] * min(count, count if max_frames is None else max_frames - len(frames))
            if len(frames) == max_frames:
                break
        if not frames:
            raise ValueError("it holds no frame")
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).contiguous()


@dataclasses.dataclass(frozen=True)
class SampledFrames:
    """A fixed number of frames of a file, evenly over the time that it plays.

    Attributes:
        frames: The frames; one that is shown for long may be there more than once.
        found: Number of frames that were read of the file.
        seconds: Seconds that these play.
        is_whole: Whether these are all that the file holds.
    """

    frames: UInt8[Tensor, "3 t h w"]
    found: int
    seconds: float
    is_whole: bool


def sample_frames(
    path: str | Path, num_frames: int, *, size: int, max_frames: int, max_pixels: int, formats: tuple[str, ...]
) -> SampledFrames:
    """Return `num_frames` frames of a video file that nobody vouches for, as `read_frames` shows them: at the middle of equal parts of its time.

    Args:
        path: The file, as for `read_frames`.
        num_frames: Number of frames to return.
        size: Height and width in pixels.
        max_frames: Most frames that are read; of a longer file these are the first.
        max_pixels: Most pixels of a frame; larger ones are refused before they are decoded.
        formats: FFmpeg's names of the kinds of file that are read; some that it knows are lists of other files.

    Raises:
        ValueError: If a number is below 1, or as `read_frames`; the file is named.
        ImportError: If PyAV is not installed.
    """
    for name, value in (("num_frames", num_frames), ("max_frames", max_frames)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    frames: list[np.ndarray] = []
    starts: list[float] = []
    end, is_whole = 0.0, True
    with _opened(path, formats) as (decoded, stream):
        _check_pixels(stream.width, stream.height, max_pixels)
        rate = float(stream.average_rate or stream.guessed_rate or 1)
        for number, frame in enumerate(decoded):
            if number == max_frames:
                is_whole = False
                break
            frames.append(np.asarray(center_crop(_picture(frame, stream, max_pixels), size)))
            start = number / rate if frame.time is None else frame.time
            starts.append(max([start, *starts[-1:]]))
            end = starts[-1] + (float((frame.duration or 0) * (frame.time_base or 0)) or 1 / rate)
        if not frames:
            raise ValueError("it holds no frame")
    seconds = end - starts[0]
    # A middle often is where a frame begins. Time stamps are rounded, to milliseconds in some files.
    middles = starts[0] + seconds * (np.arange(num_frames) + 0.5) / num_frames + 0.001
    chosen = np.searchsorted(starts, middles, side="right") - 1
    pixels = torch.from_numpy(np.stack(frames)[chosen]).permute(3, 0, 1, 2).contiguous()
    return SampledFrames(pixels, len(frames), seconds, is_whole)


@contextlib.contextmanager
def _opened(path: str | Path, formats: tuple[str, ...] = ()) -> Iterator[tuple[Iterator[Any], Any]]:
    """Yield the frames of a file and their stream; whatever goes wrong, then or later inside, is a ValueError that names the file."""
    av = require_pyav()
    # A file may name others to be read; none of them on a network.
    options = {"protocol_whitelist": "file", **({"format_whitelist": ",".join(formats)} if formats else {})}
    try:
        with av.open(str(path), options=options) as container:
            stream = _video_stream(av, container)
            yield container.decode(stream), stream
    # PyAV raises its own errors, all of them OSError or ValueError.
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"video {str(path)!r} cannot be read: {reason}") from error


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


def _check_pixels(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise ValueError(f"{width}x{height} pixels, at most {most:,} are read")


def _picture(frame: Any, stream: Any, max_pixels: int) -> Image.Image:
    """Return a frame in RGB as it is meant to be seen."""
    ratio = float(stream.sample_aspect_ratio or 1)
    # Enlarged along one side, so that nothing is lost.
    width, height = round(frame.width * max(ratio, 1)), round(frame.height * max(1 / ratio, 1))
    for sides in ((width, height), (frame.width, frame.height)):
        _check_pixels(*sides, max_pixels)
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
