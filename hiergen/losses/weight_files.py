"""Frozen networks and their weights: read from files that the user names or that a cache already holds, never as pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiergen import weights


class Frozen:
    """A network that a loss reads but never trains: in eval mode, without gradients of its weights, in no state dict.

    It is no submodule of what holds it, so checkpoints and optimizers do not see it; it follows the inputs' device instead.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network: Any = network.eval().requires_grad_(False)
        self._device = torch.device("cpu")

    def on(self, device: torch.device) -> Any:
        """Return the network on `device`, moved there if it was elsewhere."""
        if device != self._device:
            self._network.to(device)
            self._device = device
        return self._network


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of a .pth file that holds tensors alone.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no flat table of tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"weights file {str(path)!r} does not exist")
    values = weights.read_weights(file)
    if not isinstance(values, Mapping) or not all(isinstance(value, Tensor) for value in values.values()):
        raise ValueError(f"weights file {str(path)!r} holds no flat table of tensors, expected a state_dict")
    return dict(values)


def find_weights(what: str, names: Sequence[str], folders: Sequence[str | Path], *, source: str = "") -> Path:
    """Return the first file of one of `names` in one of `folders`; `source` says where they come from.

    Raises:
        FileNotFoundError: If there is none, with the names and the folders where one may be put.
    """
    for folder in folders:
        for name in names:
            if (Path(folder) / name).is_file():
                return Path(folder) / name
    places = " or ".join(repr(str(folder)) for folder in folders)
    raise FileNotFoundError(
        f"{what} are missing: put {' or '.join(names)} into {places}, or name the file"
        + (f"; {source}" if source else "")
    )


def torch_cache() -> Path:
    """Return the folder where torchvision keeps the weights that it downloads."""
    return Path(torch.hub.get_dir()) / "checkpoints"
