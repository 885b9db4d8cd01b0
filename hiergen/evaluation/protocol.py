"""What evaluations have in common: how pixels are rounded, how the work is cut, and what a report says about its making."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from jaxtyping import UInt8
from torch import Tensor

from hiergen import __version__
from hiergen.data.images.pixels import to_uint8
from hiergen.environment import leave_processes_at_exit, settle_threads
from hiergen.evaluation.settings import Rounding

RESIZE_RULE = "ADM: halved with a box filter while the short side is at least twice the size, then bicubic to the size, then the central crop"
#: Time for which processes wait for each other: as long as the work of one may take. A launcher ends the others if one fails.
PATIENCE = datetime.timedelta(days=1)
#: With fewer samples per channel a covariance is no estimate of one.
SAMPLES_PER_CHANNEL = 5


def quantize(images: Tensor, rounding: Rounding = "nearest") -> UInt8[Tensor, ...]:
    """Return images or clips of [-1, 1] as uint8 on their device, by the same rule for real, rebuilt and generated ones.

    Real images come back as the bytes they were read from, under both rules.
    """
    if rounding == "nearest":
        return to_uint8(images)
    # The margin is for bytes that lost their last bits on the way to [-1, 1] and back.
    return images.detach().float().clamp(-1, 1).add(1).mul(127.5).add(1e-3).floor().clamp(0, 255).to(torch.uint8)


ROUNDING_RULES = {
    "nearest": "clamped to [-1, 1], then round(127.5 (x + 1)), for both sets",
    "truncate": "clamped to [-1, 1], then floor(127.5 (x + 1)), for both sets (ADM's and ResTok's samples)",
}


def process_state() -> PartialState:
    """Return what Accelerate knows of this process and the others that a launcher started, on GPUs or on CPUs."""
    # Unless it is told, Accelerate lets every process that a launcher started on CPUs believe that it is alone.
    on_cpus = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpus, timeout=PATIENCE)
    # Afterwards, because Accelerate may choose a number of threads.
    settle_threads()
    leave_processes_at_exit()
    return state


def check_finite(images: Tensor, first_index: int, what: str) -> Tensor:
    """Return images if all are finite.

    Raises:
        ValueError: Naming the first image that is not.
    """
    broken = (~images.isfinite()).flatten(1).any(dim=1)
    if bool(broken.any()):
        index = first_index + int(broken.int().argmax())
        raise ValueError(f"{what} {index} holds NaN or infinity: its pixels mean nothing, so no figure is computed")
    return images


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a figure must be read with: versions, commit, hardware, date."""
    is_cuda = device.type == "cuda"
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {
            "hiergen": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "torch-fidelity", "numpy", "diffusers")},
        },
        "hardware": {
            "device": torch.cuda.get_device_name(device) if is_cuda else f"{platform.machine()} CPU",
            "threads": torch.get_num_threads(),
            "processes": process_state().num_processes,
        },
    }


def small_sample_warning(name: str, count: int, dim: int, unit: str = "images") -> list[str]:
    """Return a warning where there are too few samples for a Fréchet distance of so many channels."""
    wanted = SAMPLES_PER_CHANNEL * dim
    if count >= wanted:
        return []
    return [
        f"{name} holds {count:,} {unit} for {dim:,} channels: below {wanted:,} ({SAMPLES_PER_CHANNEL} a channel) a Fréchet distance is "
        f"mostly bias; compare it only with distances of as many {unit}"
    ]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Return the commit of the source tree that runs; with "+" where files differ from it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "not in a repository"
    try:
        asked = [["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]]
        head, changes = (
            subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
            for args in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changes else "")
