"""What the video quickstart measures: the tokenizer, the clips by class, and sparse attention against dense from the same noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from hiergen.config import to_json
from hiergen.data.images.pixels import to_uint8
from hiergen.data.videos.dataset import MovingThings, from_uint8
from hiergen.metrics.clip_classifiers import FrameJudge, MovingClipExtractor, digit_clip_extractor, emoji_clip_extractor
from hiergen.metrics.video import compare_videos, frechet_video_distance, temporal_flicker
from hiergen.quickstart.report import versions
from hiergen.quickstart.settings import MOVING, VideoQuickstartSettings
from hiergen.quickstart.videos.clips import digit_size
from hiergen.quickstart.videos.samples import Drawn
from hiergen.tokenizers.base import Tokenizer


def video_scores(
    settings: VideoQuickstartSettings,
    tokenizer: Tokenizer,
    drawn: Mapping[str, Drawn],
    train: MovingThings,
    test: MovingThings,
) -> dict[str, Any]:
    """Return the measurements of a run, as JSON values.

    Args:
        settings: Settings of the run.
        tokenizer: The tokenizer, in eval mode.
        drawn: Generated clips by kind of attention; the first is dense, what the others are compared with.
        train: Real clips that were trained on.
        test: Real clips of other digits.
    """
    frames, size = train.videos.shape[2:4]
    moving = MOVING[settings.data]
    extractor = _extractor(settings, frames, size)
    accuracy = extractor.network.accuracy(test.videos, test.labels, test.directions)
    judge = clip_judge(settings.data, train)
    with torch.no_grad():
        rebuilt = tokenizer.decode(tokenizer.encode(from_uint8(test.videos))).clamp(-1, 1)
    sets = {"real test": (from_uint8(test.videos), test.labels), "rebuilt test": (rebuilt, test.labels)}
    sets |= {name: (made.videos, made.labels) for name, made in drawn.items()}
    real = from_uint8(train.videos)
    measured = {}
    for name, (videos, labels) in sets.items():
        by_clip, by_frame = judge.accuracy(to_uint8(videos), labels)
        measured[name] = {
            "count": len(labels),
            "clips_agree": by_clip,
            "frames_agree": by_frame,
            "flicker": float(temporal_flicker(videos).mean()),
            "frechet": dataclasses.asdict(frechet_video_distance(videos, real, extractor)),
        }
    return {
        "what": f"quickstart on {moving.what}, {frames} frames of {size} x {size} pixels, trained from random weights",
        "settings": to_json(settings),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "extractor": {
            "name": extractor.name,
            "description": extractor.description,
            "class_accuracy": accuracy[0],
            "direction_accuracy": accuracy[1],
        },
        "judge": f"support vector machine on {moving.judge}, trained on real train clips",
        "tokenizer": {
            "numbers_per_clip": [3 * real[0, 0].numel(), sum(spec.num_tokens * spec.dim for spec in tokenizer.specs)],
            **compare_videos(rebuilt, from_uint8(test.videos)),
        },
        "sets": measured,
        "sparse_against_dense": _against_dense(drawn),
    }


def clip_judge(data: str, train: MovingThings) -> FrameJudge:
    """Return the judge of digits or emoji, which learns from real clips."""
    if data == "emoji":
        return FrameJudge(train.videos, train.labels, crop=3 * train.videos.shape[-1] // 4, in_color=True)
    return FrameJudge(train.videos, train.labels)


def _extractor(settings: VideoQuickstartSettings, frames: int, size: int) -> MovingClipExtractor:
    if settings.data == "emoji":
        return emoji_clip_extractor(frames, size, seed=settings.seed)
    return digit_clip_extractor(frames, size, digit_size=digit_size(size), seed=settings.seed)


def _against_dense(drawn: Mapping[str, Drawn]) -> list[dict[str, Any]]:
    dense, *_ = drawn.values()
    return [
        {
            "name": name,
            "density": made.density,
            "cpu_seconds_per_clip": made.cpu_seconds / len(made.labels),
            **({} if made is dense else compare_videos(made.videos, dense.videos)),
        }
        for name, made in drawn.items()
    ]
