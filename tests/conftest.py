"""Settings that every test runs under: one thread unless OMP_NUM_THREADS says more, no network, kernels through the Triton interpreter where there is no GPU."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

import jaxtyping
import pytest
import torch

# Autograd looks for devices at its first backward pass. After a compiler has shown it a stand-in for a GPU it would start threads for it,
# and then no test may train in a forked process.
torch.ones((), requires_grad=True).backward()

if not torch.cuda.is_available():
    # Must be set before a module with kernels is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Make every test independent of the order in which tests run."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch off the run-time check of annotations: it would speak before our own messages, and compiled graphs cannot hold it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def write_tar() -> Callable[[Path, dict[str, bytes]], Path]:
    """What writes a tar file of the members given, in their order, and returns its path."""

    def write(path: Path, members: dict[str, bytes]) -> Path:
        with tarfile.open(path, "w") as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return path

    return write


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A hub on loopback without files, see `hub_server.TinyHub`, and an empty cache for it."""
    from hub_server import serving
    from huggingface_hub import constants

    with serving() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        yield served


@pytest.fixture
def own_precision() -> Iterator[None]:
    """Let a test train in a precision of its own: accelerate keeps that of the first run of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
