"""From a class label to clips: a generator and the tokenizer of video it was trained for, as a diffusers pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from hiergen.data.images.pixels import to_pictures
from hiergen.pipelines.base import HiergenPipeline, StepCallback
from hiergen.pyramid import TokenPyramid


@dataclasses.dataclass
class VideoPipelineOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        frames: One list of PIL images per clip, or a tensor `(b, 3, t, h, w)` in [-1, 1] for `output_type="pt"`.
        pyramid: The tokens they were decoded from.
    """

    frames: list[list[Image.Image]] | Tensor
    pyramid: TokenPyramid


class ClassToVideoPipeline(HiergenPipeline):
    """Class labels -> clips.

    Example:
        >>> pipe = ClassToVideoPipeline.from_pretrained("quickstart-video/pipeline")
        >>> frames = pipe(7, generator=torch.Generator().manual_seed(0)).frames[0]
        >>> frames[0].save("seven.gif", save_all=True, append_images=frames[1:], duration=125, loop=0)
    """

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int],
        *,
        num_videos_per_label: int = 1,
        generator: torch.Generator | None = None,
        callback_on_step_end: StepCallback | None = None,
        output_type: str = "pil",
        **settings: Any,
    ) -> VideoPipelineOutput:
        """Generate clips.

        Args:
            class_labels: One label or several.
            num_videos_per_label: Clips for each label, next to each other in the result.
            generator: Source of all random draws; None seeds from the operating system.
            callback_on_step_end: Called after each step.
            output_type: "pil" for PIL images, "pt" for a tensor in [-1, 1].
            settings: Fields of the generator's settings, e.g. `guidance_scale`, `num_steps`.

        Raises:
            ValueError: If a label is out of range, a number is below 1 or `output_type` is unknown.
            TypeError: If a setting is unknown to the generator.
        """
        labels = self._labels(class_labels, num_videos_per_label=num_videos_per_label)
        if output_type not in ("pil", "pt"):
            raise ValueError(f"output_type is {output_type!r}, expected 'pil' or 'pt'")
        chosen = self.generator.make_settings(**settings)
        pyramid = self.generator.generate(labels, chosen, rng=generator, callback=self._report(callback_on_step_end))
        videos = self.tokenizer.decode(pyramid.to(self.tokenizer.device)).clamp(-1, 1)
        frames = videos if output_type == "pt" else [to_pictures(video.transpose(0, 1)) for video in videos]
        return VideoPipelineOutput(frames, pyramid)
