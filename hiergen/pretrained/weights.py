"""Files of weights that others wrote, read without running anything they contain, and networks that are never trained.

`read_checkpoint` takes whatever a file holds, nested and with plain values beside the tensors: what converters start from.
`read_state_dict` takes a flat table of tensors and nothing else: what a network loads.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the dictionary that a file holds: tensors, plain values and dictionaries of them, on the CPU.

    Code in a pickle is never run.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, of another kind, or holds anything but tensors and plain values.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"weights file {str(path)!r} does not exist")
    if file.suffix not in SUFFIXES:
        raise ValueError(f"weights file {str(path)!r} is of kind {file.suffix!r}, expected {', '.join(SUFFIXES)}")
    value = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    if not isinstance(value, dict):
        raise ValueError(f"weights file {str(path)!r} holds a {type(value).__name__}, expected a dictionary of tensors")
    return value


def _read_safetensors(file: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"weights file {str(file)!r} is damaged: {error}") from error


def _read_pickle(file: Path) -> Any:
    try:
        # MAR's checkpoints keep their command line in a Namespace, which is plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # The restricted unpickler meets garbage with errors of any kind; whatever it is, the file is not plain tensors.
        raise ValueError(
            f"weights file {str(file)!r} cannot be read as plain tensors ({type(error).__name__}): it is damaged, or holds more than tensors"
        ) from error


class Frozen:
    """A network that a loss reads but never trains: in eval mode, its weights without gradients, in no state dict.

    It is not a submodule of what holds it, so checkpoints and optimizers do not see it; `on` moves it to the inputs' device.
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


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a file that holds a flat table of tensors alone.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, of another kind, or no flat table of tensors.
    """
    values = read_checkpoint(path)
    if not all(isinstance(value, Tensor) for value in values.values()):
        raise ValueError(f"weights file {str(path)!r} holds no flat table of tensors, expected a state_dict")
    return values


def find_weights(what: str, names: Sequence[str], folders: Sequence[str | Path], *, source: str = "") -> Path:
    """Return the first file with one of the `names`, in the first folder that has any.

    Args:
        what: The weights in words, for the error.
        names: Names that the file may have.
        folders: Where to look, in this order.
        source: Where the file comes from, for the error.

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
