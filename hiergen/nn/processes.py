"""Statistics of a batch that lies on several processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


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
