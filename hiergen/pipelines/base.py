"""What hiergen's pipelines share: how a saved pipeline names its parts."""

from __future__ import annotations

from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline


class HiergenPipeline(DiffusionPipeline):
    """A diffusers pipeline whose parts are hiergen's models."""

    def register_modules(self, **modules: Any) -> None:
        """Register the parts under the package's public names, so that a saved pipeline does not depend on where they live."""
        super().register_modules(**modules)
        self.register_to_config(**{name: ("hiergen", type(module).__name__) for name, module in modules.items()})
