"""Low-rank adapters (LoRA) of a generator's linear layers, by peft: the weights stay, small matrices beside them are trained."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hiergen.config import nearest
from hiergen.environment import require
from hiergen.generators.base import Generator
from hiergen.nn.depth.deltas import SharedBlock
from hiergen.seeding import derive_seed
from hiergen.training.config import LoraConfig


def add_adapters(model: nn.Module, config: LoraConfig, *, seed: int, trained: Collection[str] = ()) -> None:
    """Freeze a generator, and put an adapter beside every linear layer that is trained and named; each starts as no change.

    Args:
        model: The generator, changed in place. Layers that are frozen already get no adapter.
        config: Rank and layers.
        seed: Seed of the adapters' draws.
        trained: Names of parameters that are trained beside the adapters.

    Raises:
        ValueError: If the model is no generator, its plan has differences of steps, or a target names none of its linear layers.
        ImportError: If peft is not installed.
    """
    if not isinstance(model, Generator):
        raise ValueError(f"lora.rank is {config.rank}, but a {type(model).__name__} is no generator: leave it at 0")
    if any(isinstance(module, SharedBlock) and len(module.deltas) for module in model.modules()):
        raise ValueError(
            f"lora.rank is {config.rank}, but the model's plan has differences of single steps: train those, or leave it at 0"
        )
    peft = require("peft", "lora", "lora.rank")
    linears = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad and f"{name}.weight" not in trained
    ]
    for target in config.targets:
        if not any(_ends(name, target) for name in linears):
            ends = {name.rpartition(".")[2] for name in linears}
            raise ValueError(f"lora.targets holds {target!r}, which no linear layer is named{nearest(target, ends)}")
    chosen = [name for name in linears if not config.targets or any(_ends(name, end) for end in config.targets)]
    torch.manual_seed(derive_seed(seed, "lora"))
    alpha = config.rank if config.alpha is None else config.alpha
    model.add_adapter(peft.LoraConfig(r=config.rank, lora_alpha=alpha, target_modules=chosen))
    for name, parameter in model.named_parameters():
        if name in trained:
            parameter.requires_grad_(True)


def _ends(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


def save_plain(model: Any, folder: Path) -> None:
    """Save a model by `save_pretrained`. Adapters are added into the weights that are written, and stand in `lora/` by themselves.

    They do not stand there if other weights were trained beside them: without those they would be worth nothing.
    """
    if not getattr(model, "peft_config", None):
        model.save_pretrained(folder)
        return
    # On a copy: what is added and taken away again is rounded.
    plain = copy.deepcopy(model)
    plain.fuse_lora()
    plain.unload_lora()
    plain.save_pretrained(folder)
    if all("lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad):
        model.save_lora_adapter(folder / "lora")
