"""From a class label or a text to pictures: a generator and the tokenizer it was trained for, as a diffusers pipeline."""

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
from hiergen.generators.base import Generator
from hiergen.generators.conditioning import TextCondition, Unconditional
from hiergen.known import Known
from hiergen.pipelines.arguments import (
    Generators,
    Labels,
    Texts,
    check_count,
    check_output_type,
    read_generators,
)
from hiergen.pipelines.base import StepCallback, to_arrays
from hiergen.pipelines.editing.images import ImageEditing
from hiergen.pipelines.mixins.prompts import PromptedPipeline
from hiergen.pipelines.mixins.scoring import ScoringPipeline
from hiergen.pyramid import TokenPyramid
from hiergen.seeding import Rng, SampleRng
from hiergen.tokenizers.base import Tokenizer


@dataclasses.dataclass
class ImagePipelineOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        images: PIL images; a tensor `(b, 3, h, w)` in [-1, 1] for `output_type="pt"`, an array `(b, h, w, 3)` in [0, 1] for "np".
        pyramid: The tokens they were decoded from.
        kept: Which of its `best_of` candidates each image is, `(b,)` int64 from 0, in the order in which callbacks see them; None of one.
    """

    images: list[Image.Image] | Tensor | np.ndarray
    pyramid: TokenPyramid
    kept: Tensor | None = None


class ImagePipeline(ImageEditing, ScoringPipeline):
    """What the pipelines to images share: previews, and the kinds of output."""

    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = ("pyramid", "latents", "images")

    def _best(
        self,
        best_of: int,
        condition: Any,
        settings: dict[str, Any],
        rng: Rng | None,
        callback: StepCallback | None,
        shown: Sequence[str],
        known: Known | None,
    ) -> tuple[TokenPyramid, Tensor | None]:
        """Return the tokens of each image, of `best_of` that are drawn those that gain most by what they are told, and which these are.

        Raises:
            ValueError: If `best_of` is below 1; or above 1 beside given tokens, or where candidates cannot be compared.
        """
        if check_count("best_of", best_of) == 1:
            return self._generate(condition, settings, rng, callback, shown, known), None
        if known is not None:
            raise ValueError(f"best_of is {best_of} beside tokens that are given, expected 1")
        self._check_gains(best_of, condition)
        each = condition.repeat_interleave(best_of)
        draws = rng.repeated(best_of) if isinstance(rng, SampleRng) else rng
        pyramid = self._generate(each, settings, draws, callback, shown, None)
        kept = torch.zeros(len(condition), dtype=torch.long)
        # What is unfinished cannot be compared.
        if not self.interrupt:
            kept = self._gains(pyramid, each).unflatten(0, (-1, best_of)).argmax(dim=1).cpu()
        return pyramid[torch.arange(0, len(each), best_of) + kept], kept

    def _output(
        self,
        decoded: Tensor,
        pyramid: TokenPyramid,
        output_type: str,
        return_dict: bool,
        kept: Tensor | None = None,
    ) -> Any:
        images = (
            to_pictures(decoded) if output_type == "pil" else to_arrays(decoded) if output_type == "np" else decoded
        )
        return ImagePipelineOutput(images, pyramid, kept) if return_dict else (images, pyramid)

    def _previews(self, pyramid: TokenPyramid | None) -> dict[str, Any]:
        return {"images": lambda: None if pyramid is None else self._decode(pyramid)}


class ClassToImagePipeline(ImagePipeline):
    """Class labels -> images, and images -> others (`edit`, `outpaint`, `vary`, `blend`).

    Example:
        >>> pipe = ClassToImagePipeline.from_pretrained("quickstart/pipeline")
        >>> images = pipe([3, 7], num_images_per_label=2, generator=torch.Generator().manual_seed(0)).images
    """

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Labels = None,
        *,
        num_images_per_label: int = 1,
        num_images: int | None = None,
        best_of: int = 1,
        known: Known | None = None,
        generator: Generators = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("pyramid",),
        output_type: str = "pil",
        return_dict: bool = True,
        **settings: Any,
    ) -> Any:
        """Generate images.

        Args:
            class_labels: One class or several, by number (integers of Python, NumPy or torch) or by name (see `get_label_ids`), with a
                class hierarchy also any group or attribute ("Animals & Nature | noto"); None for images without a class, where the
                generator was trained with dropout of labels.
            num_images_per_label: Images for each label, next to each other in the result.
            num_images: Number of images without a class.
            best_of: Number of candidates that are drawn for each image, of which the one is kept that the generator finds to gain most by its class:
                by likelihood, or of a flow by the error of its velocity. It takes as many times as long, and a little to compare them.
            known: Tokens that are given and stay, one row per image; `edit` and `vary` make them of pictures.
            generator: Source of all random draws: one for the batch, or a list of one per image (or `SampleRng`), so that each image
                equals a call of its own; None seeds from the operating system.
            callback_on_step_end: Called after each step as `callback(pipe, step, timestep, tensors) -> tensors`.
            callback_on_step_end_tensor_inputs: Names of the tensors that it gets: "pyramid" and "latents", which it may replace, and "images",
                a preview in [-1, 1] decoded from the complete levels; see `HiergenPipeline`.
            output_type: "pil" for PIL images, "np" for an array in [0, 1] with the channels last, "pt" for a tensor in [-1, 1].
            return_dict: Whether to return an `ImagePipelineOutput`, or its parts as a tuple.
            settings: Fields of the generator's settings, e.g. `guidance_scale`, `temperature`, `top_p`.

        Raises:
            ValueError: If an argument or a setting is out of range or of a wrong kind.
            FloatingPointError: If a model gives NaN or infinity.
            TypeError: If a setting is unknown to the generator.
        """
        condition, rng = self._condition(class_labels, num_images_per_label, num_images, generator, output_type)
        shown = callback_on_step_end_tensor_inputs
        pyramid, kept = self._best(best_of, condition, settings, rng, callback_on_step_end, shown, known)
        decoded = self._decode(pyramid)
        self.maybe_free_model_hooks()
        return self._output(decoded, pyramid, output_type, return_dict, kept)


class TextToImagePipeline(PromptedPipeline, ImagePipeline):
    """Texts -> images, and images -> others (`edit`, `outpaint`, `vary`, `blend`).

    A generator whose encoder of words was trained along takes texts as they are. For one that was trained on the features of a frozen network
    (`config["text_encoder"]`) that network is loaded with the first text, or set before: `pipe.text_encoder = TextEncoder(FOLDER)`.

    Raises:
        ValueError: If the generator makes images of classes.

    Example:
        >>> pipe = TextToImagePipeline.from_pretrained("runs/words")
        >>> images = pipe("a red heart", num_images_per_prompt=4, negative_prompt="face", guidance_scale=3.0).images
    """

    def __init__(self, tokenizer: Tokenizer[Any], generator: Generator) -> None:
        if not generator.config.get("text_shape"):
            raise ValueError(
                f"the {type(generator).__name__} was trained on classes, expected one of texts: use ClassToImagePipeline"
            )
        super().__init__(tokenizer, generator)

    @torch.no_grad()
    def __call__(
        self,
        prompt: Texts | TextCondition = None,
        negative_prompt: Texts = None,
        *,
        num_images_per_prompt: int = 1,
        num_images: int | None = None,
        best_of: int = 1,
        known: Known | None = None,
        generator: Generators = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("pyramid",),
        output_type: str = "pil",
        return_dict: bool = True,
        **settings: Any,
    ) -> Any:
        """Generate images.

        Args:
            prompt: One text or several; or what an encoder made of them; None for images of no text.
            negative_prompt: What guidance moves away from, one text for all or one per prompt; None is no text. Without guidance nothing.
            num_images_per_prompt: Images for each text, next to each other in the result.
            num_images: Number of images without a text.
            best_of: Number of candidates that are drawn for each image, of which the one is kept that gains most by its text.
            known: Tokens that are given and stay, one row per image; `edit` and `vary` make them of pictures.
            generator: Source of all random draws, see `ClassToImagePipeline`; as are the other arguments.
            callback_on_step_end: Called after each step.
            callback_on_step_end_tensor_inputs: Names of the tensors that it gets.
            output_type: "pil", "np" or "pt".
            return_dict: Whether to return an `ImagePipelineOutput`, or its parts as a tuple.
            settings: Fields of the generator's settings, e.g. `guidance_scale`.

        Raises:
            ValueError: If an argument or a setting is out of range or of a wrong kind.
            FloatingPointError: If a model gives NaN or infinity.
            TypeError: If a setting is unknown to the generator.
        """
        check_output_type(output_type, self.output_types)
        check_count("num_images_per_prompt", num_images_per_prompt)
        condition: TextCondition | Unconditional
        told = self._told(prompt, negative_prompt)
        if told is None:
            total = num_images_per_prompt * (1 if num_images is None else check_count("num_images", num_images))
            condition = Unconditional(total)
        else:
            if num_images is not None:
                raise ValueError(
                    f"num_images is {num_images} beside a prompt, expected num_images_per_prompt: it counts those without a text"
                )
            condition = told.repeat_interleave(num_images_per_prompt)
            total = len(condition)
        rng: Rng | None = read_generators(generator, total, self.unit)
        shown = callback_on_step_end_tensor_inputs
        pyramid, kept = self._best(best_of, condition, settings, rng, callback_on_step_end, shown, known)
        decoded = self._decode(pyramid)
        self.maybe_free_model_hooks()
        return self._output(decoded, pyramid, output_type, return_dict, kept)
