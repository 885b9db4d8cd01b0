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
from hiergen.generators.conditioning import TextCondition, Unconditional, read_words
from hiergen.pipelines.arguments import (
    Generators,
    Labels,
    Texts,
    check_count,
    check_output_type,
    read_generators,
    read_texts,
)
from hiergen.pipelines.base import HiergenPipeline, StepCallback, moved, to_arrays
from hiergen.pipelines.mixins.scoring import ScoringPipeline
from hiergen.pretrained.text_encoder import TextEncoder
from hiergen.pyramid import TokenPyramid
from hiergen.seeding import Rng
from hiergen.tokenizers.base import Tokenizer


@dataclasses.dataclass
class ImagePipelineOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        images: PIL images; a tensor `(b, 3, h, w)` in [-1, 1] for `output_type="pt"`, an array `(b, h, w, 3)` in [0, 1] for "np".
        pyramid: The tokens they were decoded from.
    """

    images: list[Image.Image] | Tensor | np.ndarray
    pyramid: TokenPyramid


class ClassToImagePipeline(ScoringPipeline):
    """Class labels -> images.

    Example:
        >>> pipe = ClassToImagePipeline.from_pretrained("quickstart/pipeline")
        >>> images = pipe([3, 7], num_images_per_label=2, generator=torch.Generator().manual_seed(0)).images
    """

    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = ("pyramid", "latents", "images")

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Labels = None,
        *,
        num_images_per_label: int = 1,
        num_images: int | None = None,
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
        pyramid = self._generate(condition, settings, rng, callback_on_step_end, callback_on_step_end_tensor_inputs)
        return _output(self, pyramid, output_type, return_dict=return_dict)

    def _previews(self, pyramid: TokenPyramid | None) -> dict[str, Any]:
        return {"images": lambda: None if pyramid is None else self._decode(pyramid)}


class TextToImagePipeline(HiergenPipeline):
    """Texts -> images.

    A generator whose encoder of words was trained along takes texts as they are. For one that was trained on the features of a frozen network
    (`config["text_encoder"]`) that network is loaded with the first text, or set before: `pipe.text_encoder = TextEncoder(FOLDER)`.

    Raises:
        ValueError: If the generator makes images of classes.

    Example:
        >>> pipe = TextToImagePipeline.from_pretrained("runs/words")
        >>> images = pipe("a red heart", num_images_per_prompt=4, negative_prompt="face", guidance_scale=3.0).images
    """

    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = ("pyramid", "latents", "images")
    text_encoder: TextEncoder | None = None

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
        if prompt is None:
            if negative_prompt is not None:
                raise ValueError(f"negative_prompt is {negative_prompt!r} beside no prompt, expected a prompt too")
            count = 1 if num_images is None else check_count("num_images", num_images)
            condition, total = Unconditional(count * num_images_per_prompt), count * num_images_per_prompt
        else:
            if num_images is not None:
                raise ValueError(
                    f"num_images is {num_images} beside a prompt, expected num_images_per_prompt: it counts those without a text"
                )
            condition = self.encode_prompt(prompt, negative_prompt).repeat_interleave(num_images_per_prompt)
            total = len(condition)
        rng: Rng | None = read_generators(generator, total, self.unit)
        pyramid = self._generate(condition, settings, rng, callback_on_step_end, callback_on_step_end_tensor_inputs)
        return _output(self, pyramid, output_type, return_dict=return_dict)

    def encode_prompt(self, prompt: Texts | TextCondition, negative_prompt: Texts = None) -> TextCondition:
        """Return texts as the generator reads them.

        Args:
            prompt: One text or several; or what an encoder made of them.
            negative_prompt: What guidance moves away from, one text for all or one per prompt.

        Raises:
            ValueError: If there is no text, one is none, there are not as many negative ones, or there is no encoder.
        """
        told = prompt if isinstance(prompt, TextCondition) else self._encode(read_texts("prompt", prompt))
        if negative_prompt is None:
            return told
        against = read_texts("negative_prompt", negative_prompt)
        if len(against) not in (1, len(told)):
            raise ValueError(f"negative_prompt holds {len(against)} texts, expected 1 or {len(told)}, one per prompt")
        negative = self._encode(against * (len(told) if len(against) == 1 else 1))
        return TextCondition(told.features, told.mask, negative)

    def _encode(self, texts: list[str]) -> TextCondition:
        config = moved(self.generator).config
        name, num_tokens = (config["text_encoder"] or {}).get("name"), config["text_shape"][0]
        if name == "bytes":
            return read_words(texts, num_tokens)
        if self.text_encoder is None:
            if name is None:
                raise ValueError(
                    f"the prompt is {texts[0]!r}, but the config of this {type(self.generator).__name__} names no encoder of texts: "
                    "set pipe.text_encoder to a TextEncoder"
                )
            self.text_encoder = TextEncoder(name, num_tokens=num_tokens, device=self.generator.device)
        return TextCondition(*self.text_encoder(texts))

    def _previews(self, pyramid: TokenPyramid | None) -> dict[str, Any]:
        return {"images": lambda: None if pyramid is None else self._decode(pyramid)}


def _output(pipe: HiergenPipeline, pyramid: TokenPyramid, output_type: str, *, return_dict: bool) -> Any:
    """Return what a pipeline of images returns: the images of a pyramid in the kind that was asked for."""
    decoded = pipe._decode(pyramid)
    pipe.maybe_free_model_hooks()
    images = to_pictures(decoded) if output_type == "pil" else to_arrays(decoded) if output_type == "np" else decoded
    return ImagePipelineOutput(images, pyramid) if return_dict else (images, pyramid)
