"""What hiergen's pipelines share: how a saved pipeline names its parts, how labels are read, and what is told after a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from hiergen.generators.base import Generator
from hiergen.pipelines.lora import LoraPipeline
from hiergen.pyramid import TokenPyramid
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

    def __init__(self, tokenizer: Tokenizer[Any], generator: Generator) -> None:
        super().__init__()
        generator.check_tokenizer(tokenizer.specs)
        self.register_modules(tokenizer=tokenizer, generator=generator)

    def register_modules(self, **modules: Any) -> None:
        """Register the parts under the package's public names, so that a saved pipeline does not depend on where they live."""
        super().register_modules(**modules)
        self.register_to_config(**{name: ("hiergen", type(module).__name__) for name, module in modules.items()})

    def _labels(self, class_labels: int | Sequence[int], **repeats: int) -> Tensor:
        """Return the labels on the generator's device, each repeated as often as the one keyword argument says."""
        ((name, count),) = repeats.items()
        if count < 1:
            raise ValueError(f"{name} is {count}, expected at least 1")
        listed = [class_labels] if isinstance(class_labels, int) else list(class_labels)
        if not listed:
            raise ValueError("class_labels is empty, expected at least one label")
        return torch.tensor(listed, dtype=torch.int64, device=self.generator.device).repeat_interleave(count)

    def _report(self, callback: StepCallback | None) -> Callable[[int, TokenPyramid | None], None] | None:
        """Return what hands each step of a generator on to a callback of the pipeline."""
        if callback is None:
            return None
        return lambda step, pyramid: callback(self, step, self._shown(pyramid))

    def _shown(self, pyramid: TokenPyramid | None) -> dict[str, Any]:
        return {"pyramid": pyramid}
