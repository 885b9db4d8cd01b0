"""From a class label to clips: a generator and the tokenizer of video it was trained for, as a diffusers pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from hiergen.data.images.pixels import to_pictures
from hiergen.known import Known
from hiergen.pipelines.arguments import Generators, Labels
from hiergen.pipelines.base import StepCallback, to_arrays
from hiergen.pipelines.editing.clips import ClipEditing
from hiergen.pyramid import TokenPyramid


@dataclasses.dataclass
class VideoPipelineOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        frames: One list of PIL images per clip; a tensor `(b, 3, t, h, w)` in [-1, 1] for `output_type="pt"`, an array `(b, t, h, w, 3)` in
            [0, 1] for "np".
        pyramid: The tokens they were decoded from.
    """

    frames: list[list[Image.Image]] | Tensor | np.ndarray
    pyramid: TokenPyramid


class ClassToVideoPipeline(ClipEditing):
    """Class labels -> clips, and first frames -> clips (`extend`).

    Example:
        >>> pipe = ClassToVideoPipeline.from_pretrained("quickstart-video/pipeline")
        >>> frames = pipe(7, generator=torch.Generator().manual_seed(0)).frames[0]
        >>> frames[0].save("seven.gif", save_all=True, append_images=frames[1:], duration=125, loop=0)
    """

    unit: ClassVar[str] = "video"
    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = ("pyramid", "latents", "frames")

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Labels = None,
        *,
        num_videos_per_label: int = 1,
        num_videos: int | None = None,
        known: Known | None = None,
        generator: Generators = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("pyramid",),
        output_type: str = "pil",
        return_dict: bool = True,
        **settings: Any,
    ) -> Any:
        """Generate clips.

        Args:
            class_labels: One class or several, by number (integers of Python, NumPy or torch) or by name (see `get_label_ids`); None for
                clips without a class, where the generator was trained with dropout of labels.
            num_videos_per_label: Clips for each label, next to each other in the result.
            num_videos: Number of clips without a class.
            known: Tokens that are given and stay, one row per clip; `extend` makes them of first frames.
            generator: Source of all random draws: one for the batch, or a list of one per clip (or `SampleRng`), so that each clip equals
                a call of its own; None seeds from the operating system.
            callback_on_step_end: Called after each step as `callback(pipe, step, timestep, tensors) -> tensors`.
            callback_on_step_end_tensor_inputs: Names of the tensors that it gets: "pyramid" and "latents", which it may replace, and "frames",
                a preview `(b, 3, t, h, w)` in [-1, 1] decoded from the complete levels; see `HiergenPipeline`.
            output_type: "pil" for PIL images, "np" for an array in [0, 1] with the channels last, "pt" for a tensor in [-1, 1].
            return_dict: Whether to return a `VideoPipelineOutput`, or its parts as a tuple.
            settings: Fields of the generator's settings, e.g. `guidance_scale`, `num_steps`.

        Raises:
            ValueError: If an argument or a setting is out of range or of a wrong kind.
            FloatingPointError: If a model gives NaN or infinity.
            TypeError: If a setting is unknown to the generator.
        """
        condition, rng = self._condition(class_labels, num_videos_per_label, num_videos, generator, output_type)
        asked = callback_on_step_end_tensor_inputs
        pyramid = self._generate(condition, settings, rng, callback_on_step_end, asked, known)
        decoded = self._decode(pyramid)
        self.maybe_free_model_hooks()
        return self._output(decoded, pyramid, output_type, return_dict)

    def _output(self, decoded: Tensor, pyramid: TokenPyramid, output_type: str, return_dict: bool) -> Any:
        frames: Any = decoded if output_type == "pt" else to_arrays(decoded)
        if output_type == "pil":
            frames = [to_pictures(video.transpose(0, 1)) for video in decoded]
        return VideoPipelineOutput(frames, pyramid) if return_dict else (frames, pyramid)

    def _previews(self, pyramid: TokenPyramid | None) -> dict[str, Any]:
        return {"frames": lambda: None if pyramid is None else self._decode(pyramid)}
