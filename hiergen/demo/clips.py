"""Clips in and out of the demo: reading uploads, examples, and pictures that play."""

from __future__ import annotations

import dataclasses
import functools
import io
import tempfile
from pathlib import Path

from PIL import Image
from torch import Tensor

from hiergen.data.images.pixels import to_pictures
from hiergen.data.videos.dataset import from_uint8
from hiergen.data.videos.decoding import SampledFrames, sample_frames
from hiergen.quickstart.videos.clips import quickstart_clips
from hiergen.telling import counted

#: Suffixes of the clips that are taken, and FFmpeg's names of these kinds of file, which are looked at whatever the suffix.
SUFFIXES, FORMATS = (".gif", ".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi"), ("gif", "mov", "matroska", "avi")
#: Most frames of an upload that are read.
MAX_FRAMES = 300
#: Number of example clips of a model, and milliseconds that a frame is shown.
NUM_EXAMPLES, DURATION = 10, 125


@dataclasses.dataclass(frozen=True)
class Film:
    """Frames that play over and over, of one size.

    Attributes:
        frames: The frames.
    """

    frames: tuple[Image.Image, ...]

    @classmethod
    def of(cls, clip: Tensor) -> Film:
        """Return the film of a clip `(3, t, h, w)` in [-1, 1]."""
        return cls(tuple(to_pictures(clip.transpose(0, 1))))

    def beside(self, other: Film) -> Film:
        """Return one film of this one and another to its right, which so play in step."""
        (width, height), frames = self.frames[0].size, []
        gap = max(1, width // 16)
        for pair in zip(self.frames, other.frames, strict=True):
            sheet = Image.new("RGBA", (2 * width + gap, height))
            for number, frame in enumerate(pair):
                sheet.paste(frame, (number * (width + gap), 0))
            frames.append(sheet)
        return Film(tuple(frames))

    def encoded(self, kind: str = "WEBP") -> bytes:
        """Return the bytes of a file: "WEBP", without loss, or "GIF", of 256 colors per frame."""
        first, *rest = self.frames
        buffer = io.BytesIO()
        first.save(buffer, kind, lossless=True, save_all=True, append_images=rest, duration=DURATION, loop=0)
        return buffer.getvalue()


def open_clip(data: bytes, num_frames: int, size: int, *, max_pixels: int) -> tuple[Tensor, str]:
    """Return an uploaded clip as a model sees it, `(1, 3, num_frames, size, size)` in [-1, 1], and what was done with its frames, in a sentence.

    Args:
        data: The bytes of a GIF, MP4, MOV, WebM, MKV or AVI file.
        num_frames: Number of frames that the model takes, at even times of the clip.
        size: Height and width in pixels, of the central square.
        max_pixels: Most pixels of a frame.

    Raises:
        ValueError: If it is no clip, is damaged, has a single frame, or frames of more than `max_pixels` pixels (before any is decoded).
        ImportError: If PyAV is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="hiergen-demo-") as folder:
        path = Path(folder) / "clip"
        path.write_bytes(data)
        try:
            found = sample_frames(
                path, num_frames, size=size, max_frames=MAX_FRAMES, max_pixels=max_pixels, formats=FORMATS
            )
            if found.found == 1:
                raise ValueError("clip: it holds a single frame, a picture; models of pictures take it")
        except ValueError as error:
            reason = str(error).partition(": ")[2]
            # FFmpeg's own words for whatever it does not know.
            if reason.startswith("Invalid"):
                reason = "it is no GIF, MP4, MOV, WebM, MKV or AVI file, or a damaged one"
            raise ValueError(f"your file cannot be read as a clip: {reason}") from error
    return from_uint8(found.frames)[None], _told(found, num_frames)


def _told(found: SampledFrames, num_frames: int) -> str:
    """Return what was done with the frames of an upload; nothing where all of them are shown once."""
    if found.is_whole and found.found == num_frames:
        return ""
    frames = f"{counted(found.found, 'frame')} in {found.seconds:.1f} s"
    said = f"Your clip has {frames}" if found.is_whole else f"Of your clip the first {frames} were read"
    if found.found > num_frames:
        return f"{said}; the model takes {num_frames}, which were taken at even times."
    return f"{said}; the model takes {num_frames}, so frames were repeated, each for as long as it is shown."


@functools.lru_cache(maxsize=4)
def embedded_clips(data: str, num_frames: int, size: int) -> Tensor:
    """Return a held-out clip of each class, `(10, 3, num_frames, size, size)` in [-1, 1]: of "emoji", or of digits."""
    clips = quickstart_clips("test", NUM_EXAMPLES, (num_frames, size, size), seed=0, data=data)
    return from_uint8(clips.videos)
