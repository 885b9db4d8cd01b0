"""CUDA graphs of whole calls: what is left of a call's time when nothing is launched from Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def captured(call: Callable[[], Result], device: torch.device, *, warmups: int = 3) -> Callable[[], Result]:
    """Return what replays a CUDA graph of a call, and gives the tensors that the capture gave, filled anew.

    The call may not wait for the device, and draws random numbers from PyTorch's default generator alone. On other devices the call itself
    is returned.

    Args:
        call: What to capture; it is run `warmups` times before, on a stream beside.
        device: Device that the call works on.
        warmups: Number of runs before the capture, in which libraries allocate what they keep.

    Raises:
        RuntimeError: By PyTorch, if the call cannot be captured.
    """
    if device.type != "cuda":
        return call
    beside = torch.cuda.Stream(device)
    beside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(beside):
        for _ in range(warmups):
            call()
    torch.cuda.current_stream(device).wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Result:
        graph.replay()
        return result

    return replay
