"""Clips with class labels, in memory: `VideoSet`, and the reader that makes one of a folder of video files.

Letters: `n` clips, `b` batch, `c` channels, `t h w` a clip.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from hiergen.data.dataset import Dataset, Sample
from hiergen.data.files.folders import class_names, class_order
from hiergen.data.images.in_memory import ImageSet
from hiergen.data.videos.decoding import read_frames
from hiergen.data.videos.files import list_videos

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class VideoSet(Dataset):
    """Clips of one size that fit in memory.

    Attributes:
        videos: `(n, c, t, h, w)`, uint8: value k stands for k / 127.5 - 1.
        labels: `(n,)`, int64.
        classes: Name of each class.
        skipped: What was wrong with each file that was not read, by path.
    """

    unit = "clip"

    videos: UInt8[Tensor, "n c t h w"]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return self.videos.shape[0]

    def batch(self, samples: Sequence[Sample], *, seed: int) -> dict[str, Tensor]:
        """Return `video`, float32 in [-1, 1], and `label`."""
        chosen = torch.tensor([index for index, _ in samples])
        return {"video": from_uint8(self.videos[chosen]), "label": self.labels[chosen]}

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.videos.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()[:16]

    def frames(self, every: int = 1) -> ImageSet:
        """Return every `every`-th frame of all clips as images, clip by clip: what a frame-wise tokenizer is trained on.

        Raises:
            ValueError: If `every` is below 1.
        """
        if every < 1:
            raise ValueError(f"every is {every}, expected at least 1")
        chosen = self.videos[:, :, ::every]
        labels = self.labels.repeat_interleave(chosen.shape[2])
        return ImageSet(from_uint8(chosen.transpose(1, 2).flatten(0, 1)), labels, self.classes)


@dataclasses.dataclass(frozen=True)
class MovingThings(VideoSet):
    """Clips of one moving thing each; the label is what it is.

    Attributes:
        directions: `(n,)`, int64: where the thing starts to: 0 up and left, 1 up and right, 2 down and left, 3 down and right.
    """

    directions: Int64[Tensor, " n"] = dataclasses.field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))


def from_uint8(values: UInt8[Tensor, ...]) -> Float[Tensor, ...]:
    """Return bytes as float32 in [-1, 1]: value k becomes k / 127.5 - 1."""
    return values.float().div(127.5).sub(1)


def load_clips(
    folder: str | Path,
    *,
    num_frames: int = 16,
    size: int = 64,
    stride: int = 1,
    clips_per_file: int | None = None,
    fps: float | int | None = None,
) -> VideoSet:
    """Return the clips of a folder of video files; sub-folders are classes, without any there is one class.

    A file is cut into clips of `num_frames` frames, each `stride` frames after the other, one clip after the other from the start;
    frames are center-cropped to a square. A file that is damaged, no video or too short for one clip is skipped: it is logged, and
    named in `skipped`. All clips are held in memory: 0.75 MiB each for 16 frames of 128 pixels.

    Args:
        folder: Folder of video files, at any depth.
        num_frames: Number of frames per clip.
        size: Height and width in pixels.
        stride: Number of frames of the file from one frame of a clip to the next.
        clips_per_file: Largest number of clips from each file; None takes all.
        fps: Frames per second that each file is brought to by its time stamps, before it is cut; None takes the frames of the file.

    Raises:
        ValueError: If a number is below 1, `fps` is not above 0, the folder is missing or holds no video file, or none of them can be read.
        ImportError: If PyAV is not installed.
    """
    for name, value in (("num_frames", num_frames), ("size", size), ("stride", stride)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    if clips_per_file is not None and clips_per_file < 1:
        raise ValueError(f"clips_per_file is {clips_per_file}, expected at least 1, or None for all")
    if fps is not None and not fps > 0:
        raise ValueError(f"fps is {fps}, expected above 0, or None for the frames of each file")
    paths = list_videos(folder)
    span = (num_frames - 1) * stride + 1
    clips: list[Tensor] = []
    found: list[str] = []
    skipped: dict[str, str] = {}
    for path, name in zip(paths, class_names(paths, folder), strict=True):
        limit = None if clips_per_file is None else (clips_per_file - 1) * num_frames * stride + span
        try:
            frames = read_frames(path, size=size, max_frames=limit, fps=fps)
            if frames.shape[1] < span:
                raise ValueError(f"video {str(path)!r} has {frames.shape[1]} frames, a clip takes {span}")
        except ValueError as error:
            skipped[str(path)] = str(error)
            logger.warning("skipped (%d so far): %s", len(skipped), error)
            continue
        starts = range(0, frames.shape[1] - span + 1, num_frames * stride)
        clips += [frames[:, start : start + span : stride] for start in starts]
        found += [name] * len(starts)
    if not clips:
        raise ValueError(
            f"none of the {len(paths)} video files of {str(folder)!r} can be read; the last: {list(skipped.values())[-1]}"
        )
    classes = class_order(found)
    return VideoSet(torch.stack(clips), torch.tensor([classes.index(name) for name in found]), classes, skipped)
