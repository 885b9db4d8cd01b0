"""`hiergen env`: what a report of a fault should say of the machine; no names of users or hosts, no tokens."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import tyro

from hiergen.checked import Checked
from hiergen.environment import processor_name


@dataclasses.dataclass(frozen=True)
class EnvSettings(Checked):
    """Print what a report of a fault should say of the machine: versions, processor, threads, GPUs, caches. Nothing secret is read.

    Attributes:
        json: Print JSON.
    """

    json: bool = False


def main(args: list[str]) -> None:
    settings = tyro.cli(EnvSettings, args=args, prog="hiergen env", config=(tyro.conf.FlagCreatePairsOff,))
    found = environment()
    if settings.json:
        import json

        print(json.dumps(found, indent=2))
        return
    for title, entries in found.items():
        print(title)
        width = max(map(len, entries))
        print("\n".join(f"  {name:{width}}  {value}" for name, value in entries.items()))


def environment() -> dict[str, dict[str, Any]]:
    """Return versions, machine, packages by extra, and where caches lie, as JSON values. The user's folder is written as ~."""
    import torch

    import hiergen

    gpus = [
        f"{card.name}, {card.total_memory / 2**30:.0f} GiB, capability {card.major}.{card.minor}"
        for card in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]
    variables = (
        "OMP_NUM_THREADS",
        "GOMP_SPINCOUNT",
        "OMP_WAIT_POLICY",
        "CUDA_VISIBLE_DEVICES",
        "HF_HUB_OFFLINE",
        "TRITON_INTERPRET",
    )
    return {
        "hiergen": {
            "version": hiergen.__version__,
            "installed in": _hidden(str(Path(hiergen.__file__).parent)),
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        "machine": {
            "processor": processor_name(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads of torch": torch.get_num_threads(),
            "GPUs": gpus or "none that torch sees",
            "CUDA of torch": torch.version.cuda or "none",
            **{name: os.environ[name] for name in variables if name in os.environ},
        },
        **_packages(),
        "caches": {name: _hidden(path) for name, path in _caches().items()},
    }


def _packages() -> dict[str, dict[str, str]]:
    """Return the installed version of every package that hiergen needs: of the core, and of each extra."""
    groups: dict[str, dict[str, str]] = {}
    for line in importlib.metadata.requires("hiergen") or []:
        name = re.split(r"[\s<>=!\[;(]", line, maxsplit=1)[0]
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if name == "hiergen" or (extra and extra[1] in ("dev", "all")):
            continue
        group = groups.setdefault(f"extra [{extra[1]}]" if extra else "packages", {})
        try:
            group[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            group[name] = "not installed"
    return groups


def _caches() -> dict[str, str]:
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    return {"Hugging Face": HF_HUB_CACHE, "torch": torch.hub.get_dir()}


def _hidden(path: str) -> str:
    home = str(Path.home())
    return f"~{path.removeprefix(home)}" if home != "/" and path.startswith(f"{home}/") else path
