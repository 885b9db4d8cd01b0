"""Video files: listing them, and writing clips as MP4 and GIF; reading them is `decoding`.

Letters: `c` channels, `t h w` a clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hiergen.data.files.folders import list_files
from hiergen.data.images.pixels import to_uint8
from hiergen.data.videos.decoding import require_pyav
from hiergen.files import atomic_path

SUFFIXES = (
    *(".mp4", ".mkv", ".mov", ".avi", ".webm", ".gif", ".m4v", ".mpg"),
    *(".mpeg", ".wmv", ".flv", ".ogv", ".3gp", ".mts"),
)


def list_videos(folder: str | Path) -> list[Path]:
    """Return the video files below `folder` in sorted order.

    Raises:
        ValueError: If the folder is missing or holds none.
    """
    return list_files(folder, SUFFIXES, kind="video", what="video file")


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


def caption_videos(
    videos: Mapping[str, Float[Tensor, "3 t h w"]], *, enlarge: int = 1, gap: int = 8, is_smooth: bool = False
) -> Float[Tensor, "3 t height width"]:
    """Return one clip that shows several side by side, each under its name, so that they play in step.

    Args:
        videos: Clips of equal size by name.
        enlarge: Number of times that every pixel is repeated along each side; names are written in pixels of the result.
        gap: White pixels between clips and around them.
        is_smooth: Enlarge bicubically instead.
    """
    mode = "bicubic" if is_smooth else "nearest"
    columns = []
    for name, video in videos.items():
        large = F.interpolate(video.cpu().float(), scale_factor=enlarge, mode=mode).clamp(-1, 1)
        font = ImageFont.load_default(max(10, min(16, large.shape[-1] // 12)))
        title = Image.new("L", (large.shape[-1], 24), 255)
        ImageDraw.Draw(title).text((title.width // 2, 12), name, fill=40, font=font, anchor="mm")
        bar = torch.from_numpy(np.asarray(title, dtype=np.float32) / 127.5 - 1).expand(*large.shape[:2], -1, -1)
        columns.append(F.pad(torch.cat([bar, large.to(bar.dtype)], dim=-2), (gap, 0, 0, gap), value=1.0))
    sheet = torch.cat(columns, dim=-1)
    height, width = sheet.shape[-2], sheet.shape[-1] + gap
    return F.pad(sheet, (0, gap + width % 2, 0, height % 2), value=1.0)


def _pixels(video: Tensor, enlarge: int) -> np.ndarray:
    frames = to_uint8(video).permute(1, 2, 3, 0).cpu().numpy()
    return np.ascontiguousarray(frames.repeat(enlarge, axis=1).repeat(enlarge, axis=2))
