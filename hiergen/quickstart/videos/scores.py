"""What the video quickstart measures: the tokenizer, the clips by class, and sparse attention against dense from the same noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from hiergen.config import to_json
from hiergen.data.images.pixels import to_uint8
from hiergen.data.videos.dataset import from_uint8
from hiergen.data.videos.moving_digits import MovingDigits
from hiergen.metrics.clip_classifiers import FrameJudge, digit_clip_extractor
from hiergen.metrics.video import compare_videos, frechet_video_distance, temporal_flicker
from hiergen.quickstart.report import versions
from hiergen.quickstart.settings import VideoQuickstartSettings
from hiergen.quickstart.videos.clips import digit_size
from hiergen.quickstart.videos.samples import Drawn
from hiergen.tokenizers.base import Tokenizer


def video_scores(
    settings: VideoQuickstartSettings,
    tokenizer: Tokenizer,
    drawn: Mapping[str, Drawn],
    train: MovingDigits,
    test: MovingDigits,
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
    extractor = digit_clip_extractor(frames, size, digit_size=digit_size(size), seed=settings.seed)
    accuracy = extractor.network.accuracy(test.videos, test.labels, test.directions)
    judge = FrameJudge(train.videos, train.labels)
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
        "what": f"quickstart on moving handwritten digits, {frames} frames of {size} x {size} pixels, trained from random weights",
        "settings": to_json(settings),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "extractor": {
            "name": extractor.name,
            "description": extractor.description,
            "digit_accuracy": accuracy[0],
            "direction_accuracy": accuracy[1],
        },
        "judge": "support vector machine on 8 x 8 pixels around the center of brightness of a frame, trained on real train clips",
        "tokenizer": {
            "numbers_per_clip": [3 * real[0, 0].numel(), sum(spec.num_tokens * spec.dim for spec in tokenizer.specs)],
            **compare_videos(rebuilt, from_uint8(test.videos)),
        },
        "sets": measured,
        "sparse_against_dense": _against_dense(drawn),
    }


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
