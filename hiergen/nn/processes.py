"""Several processes: statistics of a batch that lies on all of them, and threads in forked ones."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_is_forked = False


def _note_fork() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def settle_threads() -> None:
    """Make PyTorch's operations safe in a forked process, with one thread each; elsewhere, do nothing.

    Call it before the first operation and before another thread is started. A fork takes over thread pools without their threads: GNU's
    OpenMP waits for them for ever, if the parent used them, unless it needs one thread alone. PyTorch's other pool is replaced at its
    first use, without a lock: of two threads that are the first together, one finds none ("Invalid thread pool!").
    """
    if _is_forked:
        torch.set_num_threads(1)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside, an operation takes one thread: how it is cut for several decides the last bits of matrix products and sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def num_processes() -> int:
    """Return how many processes train together: 1 outside of distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_mean(x: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, with gradient; alone, the tensor itself.

    What is a mean over the samples of one process becomes one over the batch, whose shares are equal. Together with the averaging of
    gradients by data parallelism, gradients are those of one process with the whole batch.
    """
    return x if num_processes() == 1 else _ProcessMean.apply(x)


class _ProcessMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # A mean over processes is its own adjoint.
        return _ProcessMean.apply(gradients[0])
