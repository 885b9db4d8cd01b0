"""Fair timing: calls take turns, so that a slow spell of the machine meets all of them."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def choose_device(name: str) -> torch.device:
    """Return a device by name; "auto" is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def take_turns(calls: Mapping[str, Callable[[], Any]], *, repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds of each call, `repeats` a call, after one round that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_index in range(repeats + 1):
        for name, call in calls.items():
            _wait(device)
            started = time.perf_counter()
            call()
            _wait(device)
            if round_index:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what a time must be read with: device, threads, version of PyTorch."""
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else platform.machine() + " CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
