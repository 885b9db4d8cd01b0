"""What every converter does with a foreign state dict: find it in a checkpoint, read sizes off it, and fill a model with it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: Prefixes that wrappers put before every name: torch.compile and DistributedDataParallel.
_WRAPPER_PREFIXES = ("_orig_mod.", "module.")


def unwrap_state_dict(checkpoint: Mapping[str, Any], *, containers: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, without containers and without the prefixes of wrappers.

    Args:
        checkpoint: A state dict, or a checkpoint that holds one under a key of `containers`.
        containers: Keys under which a state dict may lie; the first one present is read.

    Raises:
        ValueError: If an entry is no tensor.
    """
    inner = next((checkpoint[key] for key in containers if isinstance(checkpoint.get(key), Mapping)), checkpoint)
    tensors = {}
    for name, value in inner.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"entry {name!r} of the state dict is a {type(value).__name__}, expected a tensor")
        tensors[_without_prefixes(name)] = value
    return tensors


def fill_model(model: nn.Module, tensors: Mapping[str, Tensor], *, names: Mapping[str, str] | None = None) -> None:
    """Give a model's parameters and saved buffers these values (copies), keeping the values' dtypes.

    The model may have been built with its parameters on the meta device.

    Args:
        model: The model to fill.
        tensors: Values by the model's names.
        names: The foreign name of each of the model's names, for the errors.

    Raises:
        ValueError: If a tensor is missing, surplus or of another shape; each is named.
    """
    foreign = names or {}
    wanted = model.state_dict()
    missing = [foreign.get(name, name) for name in wanted if name not in tensors]
    surplus = [foreign.get(name, name) for name in tensors if name not in wanted]
    if missing or surplus:
        raise ValueError(f"the state dict does not fit: missing {_shorten(missing)}, unexpected {_shorten(surplus)}")
    for name, value in tensors.items():
        if value.shape != wanted[name].shape:
            raise ValueError(
                f"{foreign.get(name, name)!r} has shape {tuple(value.shape)}, expected {tuple(wanted[name].shape)}"
            )
    copies = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    model.load_state_dict(copies, assign=True)


def shape_of(tensors: Mapping[str, Tensor], name: str, rank: int) -> tuple[int, ...]:
    """Return the shape of a tensor.

    Raises:
        ValueError: If the tensor is missing or of another rank.
    """
    if name not in tensors:
        raise ValueError(f"the state dict lacks tensor {name!r}")
    shape = tuple(tensors[name].shape)
    if len(shape) != rank:
        raise ValueError(f"tensor {name!r} has shape {shape}, expected {rank} dimensions")
    return shape


def count_of(tensors: Mapping[str, Tensor], prefix: str, *, at_least: int = 1) -> int:
    """Return how many modules a list `prefix.0`, `prefix.1`, ... has: one more than the highest, so that a gap shows as missing.

    Raises:
        ValueError: If there are fewer than `at_least`.
    """
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)(\.|$)")
    count = 1 + max((int(match[1]) for match in map(pattern.match, tensors) if match), default=-1)
    if count < at_least:
        raise ValueError(f"the state dict lacks tensors {prefix + '.0'!r} and following")
    return count


def check_settings(settings: Mapping[str, Any], model: type[Any]) -> None:
    """Check that every key is an argument of a model's constructor.

    Raises:
        ValueError: Naming the first that is not.
    """
    known = [name for name in inspect.signature(model.__init__).parameters if name != "self"]
    for name in settings:
        if name not in known:
            raise ValueError(f"config entry {name!r} is no setting of {model.__name__}; known are {', '.join(known)}")


def _without_prefixes(name: str) -> str:
    # Wrappers nest in either order, so no single pass over the prefixes would do.
    while name.startswith(_WRAPPER_PREFIXES):
        for prefix in _WRAPPER_PREFIXES:
            name = name.removeprefix(prefix)
    return name


def _shorten(names: list[str], most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:most]) or "nothing"
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
