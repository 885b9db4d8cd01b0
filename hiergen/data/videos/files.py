"""Video files: listing them, reading frames by PyAV, writing clips as MP4 and GIF.

Letters: `c` channels, `t h w` a clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from hiergen.data.folders import list_files
from hiergen.data.images.files import MAX_PIXELS
from hiergen.data.images.pixels import center_crop, to_uint8
from hiergen.environment import require
from hiergen.files import atomic_path

SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".gif", ".m4v", ".mpg")


def list_videos(folder: str | Path) -> list[Path]:
    """Return the video files below `folder` in sorted order.

    Raises:
        ValueError: If the folder is missing or holds none.
    """
    return list_files(folder, SUFFIXES, kind="video", what="video file")


def read_frames(path: str | Path, *, size: int, max_frames: int | None = None) -> UInt8[Tensor, "3 t h w"]:
    """Return the frames of a video file from its start, center-cropped to `size` x `size`.

    Args:
        path: The file; its first video stream is read.
        size: Height and width in pixels; see `hiergen.data.images.pixels.center_crop`.
        max_frames: Largest number of frames to read; None reads all.

    Raises:
        ValueError: If the file is missing, damaged, too large in pixels, or holds no frame of video; the file is named.
        ImportError: If PyAV is not installed.
    """
    av = require_pyav()
    frames: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                if frame.width * frame.height > MAX_PIXELS:
                    raise ValueError(f"{frame.width}x{frame.height} pixels, at most {MAX_PIXELS:,} are read")
                frames.append(np.asarray(center_crop(frame.to_image(), size)))
                if len(frames) == max_frames:
                    break
    # PyAV raises its own errors, all of them OSError or ValueError, and IndexError where there is no video stream.
    except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
        raise ValueError(f"video {str(path)!r} cannot be read: {error}") from error
    if not frames:
        raise ValueError(f"video {str(path)!r} cannot be read: it holds no frame")
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).contiguous()


def write_mp4(path: str | Path, video: Float[Tensor, "3 t h w"], *, fps: int = 8, enlarge: int = 1) -> None:
    """Write a clip of [-1, 1] as MP4 (H.264).

    Args:
        path: Path of the file that is written.
        video: The clip; height and width times `enlarge` must be even.
        fps: Frames per second.
        enlarge: Number of times that every pixel is repeated along each side.

    Raises:
        ValueError: If a side is odd.
        ImportError: If PyAV is not installed.
    """
    av = require_pyav()
    pixels = _pixels(video, enlarge)
    height, width = pixels.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(
            f"video is {height} x {width} pixels when written, expected even sides: H.264 halves its colors"
        )
    with atomic_path(path) as temporary, av.open(str(temporary), mode="w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "15"}
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_gif(path: str | Path, video: Float[Tensor, "3 t h w"], *, fps: int = 8, enlarge: int = 1) -> None:
    """Write a clip of [-1, 1] as a GIF that repeats for ever; arguments as `write_mp4`, sides may be odd."""
    first, *rest = (Image.fromarray(frame) for frame in _pixels(video, enlarge))
    with atomic_path(path) as temporary:
        first.save(temporary, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)


def tile_videos(rows: Sequence[Float[Tensor, "n 3 t h w"]], *, gap: int = 2) -> Float[Tensor, "3 t height width"]:
    """Return one clip that shows several side by side, `gap` grey pixels apart, padded to even sides.

    Args:
        rows: Clips of each row, equal in number and size.
        gap: Pixels between clips and around them.
    """
    padded = [F.pad(row, (gap, 0, gap, 0), value=0.0) for row in rows]
    sheet = torch.cat([torch.cat(list(row), dim=-1) for row in padded], dim=-2)
    height, width = sheet.shape[-2] + gap, sheet.shape[-1] + gap
    return F.pad(sheet, (0, gap + width % 2, 0, gap + height % 2), value=0.0)


def _pixels(video: Tensor, enlarge: int) -> np.ndarray:
    frames = to_uint8(video).permute(1, 2, 3, 0).cpu().numpy()
    return np.ascontiguousarray(frames.repeat(enlarge, axis=1).repeat(enlarge, axis=2))


def require_pyav() -> ModuleType:
    """Return PyAV.

    Raises:
        ImportError: If it is not installed.
    """
    require("av.error", "video", "a video file")
    return require("av", "video", "a video file")
