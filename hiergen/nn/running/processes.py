"""Statistics of a batch that lies on several processes: means, and a batch norm over the whole of it.

Letters: `b` batch, `c h w` image.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn


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


class ProcessBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose statistics in training are those of the batch of all processes, on GPUs and CPUs (`nn.SyncBatchNorm` is
    for GPUs alone). On one process, and in evaluation, it is `nn.BatchNorm2d`.

    Every process must hold as many samples. Parts of a batch that is accumulated are still normalized one by one.
    """

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if not self.training or num_processes() == 1:
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()
        mean = process_mean(x.mean(dim=(0, 2, 3)))
        centered = x - mean[:, None, None]
        variance = process_mean(centered.square().mean(dim=(0, 2, 3)))
        self._track(mean.detach(), variance.detach(), count=num_processes() * x.numel() // x.shape[1])
        normal = centered * (variance + self.eps).rsqrt()[:, None, None]
        return (normal * self.weight[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, *, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        # The running variance is that of a sample, as PyTorch has it.
        unbiased = variance * (count / (count - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
