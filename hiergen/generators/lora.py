"""Adapters of a generator, loaded and saved as diffusers does, from and to safetensors alone."""

from __future__ import annotations

import os
from typing import Any

from diffusers.loaders.peft import PeftAdapterMixin


class LoraModel(PeftAdapterMixin):
    """Gives a model `add_adapter`, `load_lora_adapter`, `fuse_lora`, `unload_lora` and the like of diffusers; they need peft."""

    def load_lora_adapter(  # type: ignore[override]  # diffusers' prefix defaults to that of its own models
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | dict[str, Any],
        prefix: str | None = None,
        **options: Any,
    ) -> None:
        """Load an adapter beside the weights, as diffusers does.

        Args:
            pretrained_model_name_or_path_or_dict: A folder or Hub id with `pytorch_lora_weights.safetensors`, or tensors by name.
            prefix: What the names begin with, up to the first dot; None for nothing, as `save_lora_adapter` writes them.
            options: `adapter_name`, `weight_name` and others of diffusers.

        Raises:
            ValueError: If the file is no safetensors.
        """
        name = options.get("weight_name")
        if not options.setdefault("use_safetensors", True) or (name is not None and not name.endswith(".safetensors")):
            raise ValueError(
                f"weight_name is {name!r}, expected a name that ends in .safetensors: a pickle can run code"
            )
        super().load_lora_adapter(pretrained_model_name_or_path_or_dict, prefix=prefix, **options)

    def save_lora_adapter(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], adapter_name: str = "default", **options: Any
    ) -> None:
        """Save an adapter as `pytorch_lora_weights.safetensors`, without the weights that it stands beside.

        Raises:
            ValueError: If a pickle is asked for.
        """
        if not options.get("safe_serialization", True):
            raise ValueError("safe_serialization is False, expected True: a pickle can run code")
        super().save_lora_adapter(save_directory, adapter_name=adapter_name, **options)
