"""Checkpoints that survive being killed: written beside, flushed, renamed, and only then is an old one removed.

A checkpoint is a folder `samples-<n>` with safetensors, `state.json` and, written last, `manifest.json` that holds the size and
SHA-256 of every other file. A folder counts only if it agrees with its manifest.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hiergen.files import atomic_directory, file_digest, remove_directory, write_json
from hiergen.training.processes.sharding import share_like

logger = logging.getLogger(__name__)

_NAME = re.compile(r"samples-(\d{12})")
MANIFEST = "manifest.json"
#: Free space that must remain beyond what a checkpoint takes, in bytes.
SPARE_BYTES = 64 * 2**20


def save_checkpoint(
    folder: Path,
    samples_seen: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep_last: int,
) -> Path:
    """Write one checkpoint and then prune the oldest beyond `keep_last`.

    Args:
        folder: Folder of all checkpoints of a run.
        samples_seen: Position in the run, which names the checkpoint.
        tensors: Tensors by name, by file stem.
        state: JSON values.
        keep_last: Number of checkpoints to keep.

    Raises:
        OSError: If there is not enough space or writing fails; earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values()) + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"a checkpoint needs {needed:,} bytes, {str(folder)!r} has {free:,} free; the earlier ones are kept"
        )
    target = folder / f"samples-{samples_seen:012d}"
    with atomic_directory(target) as temporary:
        for stem, group in tensors.items():
            plain = {name: value.detach().contiguous().cpu() for name, value in group.items()}
            save_file(plain, temporary / f"{stem}.safetensors")
        write_json(temporary / "state.json", dict(state))
        files = sorted(path for path in temporary.iterdir() if path.is_file())
        manifest = {path.name: {"size": path.stat().st_size, "sha256": file_digest(path)} for path in files}
        write_json(temporary / MANIFEST, manifest)
    for old in _checkpoints(folder)[:-keep_last]:
        remove_directory(old)
    return target


def sweep(folder: Path) -> None:
    """Delete what killed writes left. Only the run that writes there may: the unfinished checkpoint of another looks the same."""
    for pattern in (".tmp-*", ".del-*"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def find_checkpoint(folder: Path) -> Path | None:
    """Return the newest valid checkpoint, or None; what is broken is passed over with a warning."""
    if not folder.is_dir():
        return None
    for path in reversed(_checkpoints(folder)):
        problem = find_problem(path)
        if problem is None:
            return path
        logger.warning("checkpoint %s is passed over: %s", path.name, problem)
    return None


def find_problem(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, naming the file, or None if it agrees with its manifest."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, wanted in manifest.items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != wanted["size"]:
                return f"{name} has {file.stat().st_size} bytes, its manifest says {wanted['size']}"
            if file_digest(file) != wanted["sha256"]:
                return f"{name} does not have the checksum of its manifest"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return the tensors by file stem, on the CPU, and the state of a checkpoint that `find_checkpoint` approved."""
    tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    return tensors, json.loads((path / "state.json").read_text())


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state as tensors named `<parameter index>.<entry>`."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, entry in state.items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load what `flatten_optimizer` returned. Where parameters are shared out, the moments are cut to this process's share.

    Raises:
        ValueError: If the parameters differ in number.
    """
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    if state and max(state) >= len(parameters):
        raise ValueError(f"the checkpoint's optimizer holds {max(state) + 1} parameters, this one {len(parameters)}")
    shares = {
        at: {key: share_like(value, parameters[at]) for key, value in entry.items()} for at, entry in state.items()
    }
    optimizer.load_state_dict({"state": shares, "param_groups": optimizer.state_dict()["param_groups"]})


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name))
