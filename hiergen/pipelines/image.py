"""From a class label to pictures: a generator and the tokenizer it was trained for, as a diffusers pipeline."""

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
from hiergen.seeding import Rng


@dataclasses.dataclass
class ImagePipelineOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        images: PIL images, or a tensor `(b, 3, h, w)` in [-1, 1] for `output_type="pt"`.
        pyramid: The tokens they were decoded from.
    """

    images: list[Image.Image] | Tensor
    pyramid: TokenPyramid


class ClassToImagePipeline(HiergenPipeline):
    """Class labels -> images.

    Example:
        >>> pipe = ClassToImagePipeline.from_pretrained("quickstart/pipeline")
        >>> images = pipe([3, 7], num_images_per_label=2, generator=torch.Generator().manual_seed(0)).images
    """

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int],
        *,
        num_images_per_label: int = 1,
        generator: Rng | None = None,
        callback_on_step_end: StepCallback | None = None,
        output_type: str = "pil",
        **settings: Any,
    ) -> ImagePipelineOutput:
        """Generate images.

        Args:
            class_labels: One label or several.
            num_images_per_label: Images for each label, next to each other in the result.
            generator: Source of all random draws, for the batch or for each sample (`SampleRng`); None seeds from the operating system.
            callback_on_step_end: Called after each step; beside "pyramid" it gets "images", a preview in [-1, 1] decoded from the complete levels.
            output_type: "pil" for PIL images, "pt" for a tensor in [-1, 1].
            settings: Fields of the generator's settings, e.g. `guidance_scale`, `temperature`, `top_p`.

        Raises:
            ValueError: If a label is out of range, a number is below 1 or `output_type` is unknown.
            TypeError: If a setting is unknown to the generator.
        """
        labels = self._labels(class_labels, num_images_per_label=num_images_per_label)
        if output_type not in ("pil", "pt"):
            raise ValueError(f"output_type is {output_type!r}, expected 'pil' or 'pt'")
        chosen = self.generator.make_settings(**settings)
        pyramid = self.generator.generate(labels, chosen, rng=generator, callback=self._report(callback_on_step_end))
        images = self.tokenizer.decode(pyramid).clamp(-1, 1)
        return ImagePipelineOutput(to_pictures(images) if output_type == "pil" else images, pyramid)

    def _shown(self, pyramid: TokenPyramid | None) -> dict[str, Any]:
        images = None if pyramid is None else self.tokenizer.decode(pyramid).clamp(-1, 1)
        return {"images": images, "pyramid": pyramid}
