"""What hiergen's pipelines share: how a saved pipeline names its parts, how labels are read, and what is told after a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from hiergen.generators.base import Generator
from hiergen.generators.class_hierarchy import condition_names
from hiergen.generators.conditioning import Unconditional
from hiergen.pipelines.arguments import Generators, Labels, check_count, check_output_type, read_generators, read_labels
from hiergen.pipelines.lora import LoraPipeline
from hiergen.pyramid import TokenPyramid
from hiergen.seeding import Rng
from hiergen.tokenizers.base import Tokenizer

#: Called after each generation step with the pipeline, the step's index and {"pyramid": the complete levels, or None}.
StepCallback = Callable[[Any, int, dict[str, Any]], None]


class HiergenPipeline(DiffusionPipeline, LoraPipeline):
    """A diffusers pipeline of hiergen's models: a generator and the tokenizer it was trained for.

    Raises:
        ValueError: If the generator was trained for the levels of another tokenizer.
    """

    tokenizer: Tokenizer[Any]
    generator: Generator

    #: What is made of a label, in words.
    unit: ClassVar[str] = "image"
    #: The kinds of output, the default first.
    output_types: ClassVar[tuple[str, ...]] = ("pil", "np", "pt")

    def __init__(self, tokenizer: Tokenizer[Any], generator: Generator) -> None:
        super().__init__()
        generator.check_tokenizer(tokenizer.specs)
        self.register_modules(tokenizer=tokenizer, generator=generator)

    def register_modules(self, **modules: Any) -> None:
        """Register the parts under the package's public names, so that a saved pipeline does not depend on where they live."""
        super().register_modules(**modules)
        self.register_to_config(**{name: ("hiergen", type(module).__name__) for name, module in modules.items()})

    def _condition(
        self, class_labels: Labels, per_label: int, count: int | None, generator: Generators, output_type: str
    ) -> tuple[Tensor | Unconditional, Rng | None]:
        """Return the condition of every sample and the source of its draws, with all arguments checked.

        Args:
            class_labels: Labels, each of which is repeated `per_label` times; None for samples without a class.
            per_label: Number of samples of each label.
            count: Number of samples without a class.
            generator: Source of the draws.
            output_type: Kind of output.
        """
        check_output_type(output_type, self.output_types)
        each, all_of_them = f"num_{self.unit}s_per_label", f"num_{self.unit}s"
        check_count(each, per_label)
        if class_labels is not None:
            if count is not None:
                raise ValueError(
                    f"{all_of_them} is {count} beside class_labels, expected {each}: it counts those without a class"
                )
            labels = (
                read_labels(class_labels, condition_names(self.generator.config))
                .to(self.generator.device)
                .repeat_interleave(per_label)
            )
            return labels, read_generators(generator, len(labels), self.unit)
        if not self.generator.makes_unconditional:
            raise ValueError(
                f"class_labels is None, but this {type(self.generator).__name__} makes nothing without a class: "
                "its labels were never dropped in training"
            )
        total = per_label if count is None else check_count(all_of_them, count) * per_label
        return Unconditional(total), read_generators(generator, total, self.unit)

    def _decode(self, pyramid: TokenPyramid) -> Tensor:
        """Return the images or clips of a pyramid, clamped to [-1, 1].

        Raises:
            FloatingPointError: If one holds NaN or infinity.
        """
        decoded = self.tokenizer.decode(pyramid.to(self.tokenizer.device))
        broken = (~decoded.isfinite()).flatten(1).any(dim=1)
        if bool(broken.any()):
            raise FloatingPointError(
                f"{type(self).__name__}: {self.unit} {int(broken.int().argmax())} of {len(decoded)} holds NaN or infinity, decoded by "
                f"{type(self.tokenizer).__name__} from {len(pyramid)} of {len(self.tokenizer.specs)} levels"
            )
        return decoded.clamp(-1, 1)

    def _report(self, callback: StepCallback | None) -> Callable[[int, TokenPyramid | None], None] | None:
        """Return what hands each step of a generator on to a callback of the pipeline."""
        if callback is None:
            return None
        return lambda step, pyramid: callback(self, step, self._shown(pyramid))

    def _shown(self, pyramid: TokenPyramid | None) -> dict[str, Any]:
        return {"pyramid": pyramid}


def to_arrays(decoded: Tensor) -> Any:
    """Return images `(b, 3, h, w)` or clips `(b, 3, t, h, w)` of [-1, 1] as float32 arrays of [0, 1], the channels last."""
    return decoded.movedim(1, -1).to("cpu", torch.float32).add(1).div(2).numpy()
