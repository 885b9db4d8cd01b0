"""Read weights that others wrote, without running anything they contain."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def read_weights(path: str | Path) -> dict[str, Any]:
    """Return the tensors of a foreign file by name, on the CPU. Code in a pickle is never run.

    Raises:
        ValueError: If the file is missing, damaged, of another kind, or holds anything but tensors and plain values.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"weights file {str(path)!r} does not exist")
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
    import torch

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
