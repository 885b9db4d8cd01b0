"""Settings of evaluations of clips, importable without PyTorch."""

from __future__ import annotations

import dataclasses
from typing import Literal

from hiergen.checked import Checked, Count, CountOrZero
from hiergen.evaluation.settings import DistanceConfig, GeneratorSettings, PassConfig

#: Clips that come with the package; the first are the reference where no other is named.
EMBEDDED = ("moving-digits", "moving-emoji")


@dataclasses.dataclass(frozen=True)
class VideoExtractorConfig(Checked):
    """Which feature extractor of clips is used.

    Attributes:
        name: Name of the extractor: "moving-digits" or "moving-emoji" (a small 3-D network trained on these embedded clips); "frames-NAME", NAME being an extractor of
            images ("frames-inception-768"): the mean of its features over the frames and the mean absolute change from frame to frame;
            or a name given to `register_video_extractor`.
        weights: File of the weights, for those that are read from a file.
        seed: Seed of an extractor that is trained on the spot.
        digit_size: Side of the digits that "moving-digits" is trained on; 0 takes that of the clips (`clips.digit_size`).
    """

    name: str = "moving-digits"
    weights: str | None = None
    seed: int = 0
    digit_size: int = 0


@dataclasses.dataclass(frozen=True)
class ClipConfig(Checked):
    """How files are cut into clips; see `hiergen.data.videos.dataset.load_clips`.

    Attributes:
        num_frames: Number of frames of a clip.
        size: Height and width in pixels; frames are center-cropped.
        stride: Number of frames of the file from one frame of a clip to the next.
        clips_per_file: Largest number of clips from each file; clips are compared in pairs where it is 1.
        digit_size: Height and width of the digits of the embedded clips; 0 is half of the frame, `hiergen quickstart video` has two thirds.
    """

    num_frames: Count = 32
    size: Count = 32
    stride: Count = 1
    clips_per_file: Count = 1
    digit_size: CountOrZero = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoSettings(GeneratorSettings):
    """Evaluate clips. Give one of `pipeline`, `videos` and `tokenizer`.

    Attributes:
        pipeline: Folder or Hub id of a pipeline that generates clips from class labels.
        videos: Folder of video files.
        tokenizer: Folder or Hub id of a tokenizer of clips, which rebuilds the reference clips.
        prefixes: Also measure every prefix of a tokenizer's tokens (scales of every frame, or components): the rate-distortion page.
        reference: Folder of video files, or "moving-digits" or "moving-emoji", the embedded clips (test split).
        num_reference: Number of embedded clips to make.
        clips: How files are cut into clips, and the size of the embedded ones; a pipeline's or tokenizer's must be the same.
        num_videos: Number of clips to generate.
        extractor: Feature extractor on which distances are measured.
        lpips: Backbone of LPIPS ("alex", "vgg", "squeeze") for clips with a reference of their own, or "none".
        lpips_folder: Folder in which its weights are looked for first.
        keep: Form in which the clips themselves are kept: "mp4" writes files.
        distances: Number of bootstrap draws, and their seed.
    """

    videos: str = ""
    tokenizer: str = ""
    prefixes: bool = False
    reference: str = EMBEDDED[0]
    num_reference: Count = 256
    clips: ClipConfig = dataclasses.field(default_factory=ClipConfig)
    out: str = "evaluation/video"
    num_videos: Count = 256
    extractor: VideoExtractorConfig = dataclasses.field(default_factory=VideoExtractorConfig)
    lpips: str = "none"
    lpips_folder: str | None = None
    keep: Literal["none", "mp4"] = "none"
    distances: DistanceConfig = dataclasses.field(default_factory=DistanceConfig)
    passes: PassConfig = dataclasses.field(default_factory=lambda: PassConfig(batch_size=8, part_size=64))
