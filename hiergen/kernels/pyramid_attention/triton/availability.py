"""Whether Triton kernels run on a device, and launching them there."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor


@torch.compiler.assume_constant_result
def triton_problem(device: str, index: int) -> str | None:
    """Return why Triton kernels cannot run on a device, or None; on a CPU they run through the interpreter.

    Args:
        device: Type of the device.
        index: Number of the device, -1 for the current one.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability(None if index < 0 else index)
        return None if major >= 8 else f"the GPU has compute capability {major}.{minor}, below 8.0"
    if device != "cpu":
        return f"the inputs are on {device}"
    from triton import knobs

    return None if knobs.runtime.interpret else "the inputs are on a CPU and TRITON_INTERPRET=1 is not set"


def runs_triton(device: torch.device) -> bool:
    """Return whether planning uses the kernels by itself: on a GPU that runs Triton, never through the interpreter."""
    return device.type == "cuda" and triton_problem("cuda", -1 if device.index is None else device.index) is None


def on_device(x: Tensor) -> torch.cuda.device:
    """Return a context in which kernels are launched on the device of `x`; it does nothing for the CPU."""
    return torch.cuda.device(x.device if x.is_cuda else -1)
