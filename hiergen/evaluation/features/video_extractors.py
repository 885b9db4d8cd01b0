"""Feature extractors of clips by name: where Fréchet distances between sets of clips are measured.

FVD is that distance on the logits of I3D, whose weights are not among these: none of these distances is called FVD.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from hiergen.config import nearest
from hiergen.evaluation.features.extractors import EXTRACTORS, build_extractor, check_extractor
from hiergen.evaluation.settings import ExtractorConfig
from hiergen.evaluation.videos.settings import VideoExtractorConfig
from hiergen.metrics.clip_classifiers import digit_clip_extractor, emoji_clip_extractor
from hiergen.metrics.video import VideoExtractor

#: Beginning of the names of image extractors that are applied frame by frame.
BY_FRAME = "frames-"


#: Builds an extractor from (config, number of frames, side in pixels, device).
VideoBuilder = Callable[[VideoExtractorConfig, int, int, torch.device], VideoExtractor]


def build_video_extractor(
    config: VideoExtractorConfig, *, num_frames: int, size: int, device: torch.device
) -> VideoExtractor:
    """Return an extractor of clips of so many frames and pixels.

    Raises:
        ValueError: If the name is unknown, or the weights are not its own.
        FileNotFoundError: If weights are missing; says which file, how to get it and where to put it.
    """
    check_video_extractor(config)
    if config.name.startswith(BY_FRAME):
        return _by_frame(config, device)
    return VIDEO_EXTRACTORS[config.name](config, num_frames, size, device)


def check_video_extractor(config: VideoExtractorConfig) -> None:
    """Check a name and that a file of weights is there, in no time; see `check_extractor`.

    Raises:
        ValueError: If the name is unknown, or weights are given to an extractor that takes none.
        FileNotFoundError: If weights are missing.
    """
    if config.name.startswith(BY_FRAME):
        check_extractor(_of_frames(config))
    elif config.name not in VIDEO_EXTRACTORS:
        known: dict[str, object] = {
            **VIDEO_EXTRACTORS,
            **{BY_FRAME + name: build for name, build in EXTRACTORS.items()},
        }
        raise ValueError(f"unknown extractor of clips {config.name!r}{nearest(config.name, known)}")


def _of_frames(config: VideoExtractorConfig) -> ExtractorConfig:
    return ExtractorConfig(config.name.removeprefix(BY_FRAME), config.weights)


def register_video_extractor(name: str, builder: VideoBuilder) -> None:
    """Make an extractor of clips known under a name.

    Raises:
        ValueError: If the name is taken.
    """
    if name in VIDEO_EXTRACTORS or name.startswith(BY_FRAME):
        raise ValueError(f"extractor of clips {name!r} is registered already")
    VIDEO_EXTRACTORS[name] = builder


def _by_frame(config: VideoExtractorConfig, device: torch.device) -> VideoExtractor:
    frames = build_extractor(_of_frames(config), device)

    def features(videos: Tensor) -> Tensor:
        images = videos.transpose(1, 2).flatten(0, 1)
        found = torch.cat([frames(part)["pool"] for part in images.split(64)]).unflatten(0, (len(videos), -1))
        return torch.cat([found.mean(dim=1), found.diff(dim=1).abs().mean(dim=1)], dim=1)

    description = f"mean over frames and mean absolute change from frame to frame of: {frames.description} (not FVD)"
    return VideoExtractor(config.name, description, features)


def _build_moving_digits(
    config: VideoExtractorConfig, num_frames: int, size: int, device: torch.device
) -> VideoExtractor:
    found = digit_clip_extractor(num_frames, size, digit_size=config.digit_size or None, seed=config.seed)
    return dataclasses.replace(found, network=found.network.to(device))


def _build_moving_emoji(
    config: VideoExtractorConfig, num_frames: int, size: int, device: torch.device
) -> VideoExtractor:
    found = emoji_clip_extractor(num_frames, size, seed=config.seed)
    return dataclasses.replace(found, network=found.network.to(device))


#: Extractors of clips by name.
VIDEO_EXTRACTORS: dict[str, VideoBuilder] = {
    "moving-digits": _build_moving_digits,
    "moving-emoji": _build_moving_emoji,
}
