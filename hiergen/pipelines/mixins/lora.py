"""Adapters of a pipeline's generator, by diffusers' names."""

from __future__ import annotations

import os
from typing import Any

from diffusers.loaders.lora_base import LoraBaseMixin

from hiergen.generators.base import Generator


class LoraPipeline(LoraBaseMixin):
    """Gives a pipeline `load_lora_weights`, `fuse_lora`, `set_adapters` and the like of diffusers, for its generator; they need peft."""

    _lora_loadable_modules = ["generator"]  # noqa: RUF012  # diffusers' name and type
    generator: Generator

    def load_lora_weights(  # type: ignore[override]
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | dict[str, Any],
        adapter_name: str | None = None,
        **options: Any,
    ) -> None:
        """Load an adapter of the generator: see `LoraModel.load_lora_adapter`."""
        self.generator.load_lora_adapter(
            pretrained_model_name_or_path_or_dict, adapter_name=adapter_name, _pipeline=self, **options
        )

    def save_lora_weights(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], adapter_name: str = "default"
    ) -> None:
        """Save an adapter of the generator: see `LoraModel.save_lora_adapter`."""
        self.generator.save_lora_adapter(save_directory, adapter_name)

    def fuse_lora(self, components: list[str] | None = None, lora_scale: float = 1.0, **options: Any) -> None:  # type: ignore[override]
        """Add the adapters into the generator's weights, as diffusers does; `lora_scale` multiplies them."""
        super().fuse_lora(components or ["generator"], lora_scale=lora_scale, **options)

    def unfuse_lora(self, components: list[str] | None = None, **options: Any) -> None:
        """Take the adapters out of the generator's weights again, to rounding."""
        super().unfuse_lora(components or ["generator"], **options)
