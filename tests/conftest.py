"""Settings that every test runs under: fixed threads, no network, kernels through the Triton interpreter where there is no GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

import jaxtyping
import pytest
import torch

if not torch.cuda.is_available():
    # Must be set before a module with kernels is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Make every test independent of the order in which tests run."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch off the run-time check of annotations: it would speak before our own messages, and compiled graphs cannot hold it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
