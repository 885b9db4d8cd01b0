"""Settings that every test runs under: fixed threads, no network, kernels through the Triton interpreter where there is no GPU."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

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
