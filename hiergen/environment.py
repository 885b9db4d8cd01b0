"""What there is to run on: optional packages by the extra that brings them, and devices by name."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def require(module: str, extra: str, what: str) -> Any:
    """Import and return a module of an optional package.

    Args:
        module: Name of the module, e.g. "skimage.measure".
        extra: The extra of hiergen that installs its package, e.g. "shapes".
        what: Subject of the error, e.g. "surface extraction".

    Raises:
        ImportError: If the module is not there; says what needs it and how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"skimage": "scikit-image", "av": "PyAV"}.get(module.partition(".")[0], module.partition(".")[0])
        raise ImportError(f'{what} needs {package.replace("_", "-")}: pip install "hiergen[{extra}]"') from error


def choose_device(name: str) -> torch.device:
    """Return a device by name; "auto" is this process's GPU where PyTorch sees one, else the CPU.

    Raises:
        ValueError: If there is no such device.
    """
    import torch

    if name == "auto":
        # A launcher of several processes on one machine numbers them; each takes the GPU of its number.
        gpu = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        return gpu if torch.cuda.is_available() else torch.device("cpu")
    try:
        # An empty tensor shows whether the device is there, not only whether its name is one.
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"device is {name!r}, expected 'auto', 'cpu', or a GPU that is there: {why}") from error
