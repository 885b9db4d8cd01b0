"""Tensor parallelism of a `BlockStack` of `CachedBlock`s: every process holds some heads and hidden channels of every block.

What a branch gives is then a sum over processes. Its reduction is started at once and waited for where the stream needs it: in a step of
lag 1 that is after the next branch was computed, so that the two overlap. The stream is added after the reduction, never before: it would
be counted once for every process.

Letters: `b` batch, `n` tokens, `d` channels, `h` heads of a process, `k` channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from hiergen.kernels.attention import attention
from hiergen.nn.blocks.cached import CachedAttention, CachedBlock
from hiergen.nn.cache import LayerCache
from hiergen.nn.depth.stack import BlockStack
from hiergen.nn.positions import apply_rotary


def split_blocks(blocks: BlockStack, mesh: Any) -> None:
    """Let every process keep its heads and hidden channels of all blocks, in place.

    Weights must be equal on all processes before, and inputs at every pass. The gradients of what is not split are equal on all processes;
    those of the split weights are shares (`DTensor`).

    Args:
        blocks: The stack, without differences or chains.
        mesh: The processes, a `DeviceMesh` of one dimension.

    Raises:
        ValueError: If a block is no `CachedBlock`, drops channels, or has heads or hidden channels that the processes cannot share out.

    Source:
        Megatron-LM, arXiv:1909.08053; with lags Ladder-residual, arXiv:2501.06589.
    """
    for index, block in enumerate(blocks):
        if type(block) is not CachedBlock:
            raise ValueError(
                f"block {index} is a {type(block).__name__}, expected a CachedBlock without differences or chains"
            )
        count, heads, hidden = mesh.size(), block.attention.num_heads, block.ffn.gate.out_features
        if heads % count or hidden % count:
            raise ValueError(
                f"block {index} has {heads} heads and {hidden} hidden channels, expected multiples of {count} processes"
            )
        if block.attention.dropout.p or block.ffn.dropout.p:
            raise ValueError(
                f"block {index} drops channels, which every process would draw for itself: expected dropout 0"
            )
    for block in blocks.unwrapped:
        block.attention = _SplitAttention(block.attention, mesh)
        plan = {
            "gate": ColwiseParallel(),
            "up": ColwiseParallel(),
            "down": RowwiseParallel(output_layouts=Partial(), use_local_output=False),
        }
        parallelize_module(block.ffn, mesh, plan)
        # Even at rate 0 it would wait for the sum.
        block.ffn.dropout = nn.Identity()
        block.ffn.register_forward_hook(lambda module, inputs, output: reduce_later(output))


def reduce_later(partial: DTensor) -> Tensor:
    """Start the sum over processes of a share and return at once; the first use of what is returned waits."""
    whole = partial.redistribute(partial.device_mesh, [Replicate()], async_op=True)
    return whole.to_local()


class _SplitAttention(nn.Module):
    """The heads of one process of a `CachedAttention`. A fused projection is cut by heads: rows alone would mix queries with keys."""

    def __init__(self, whole: CachedAttention, mesh: Any) -> None:
        super().__init__()
        rank, count = mesh.get_local_rank(), mesh.size()
        self.mesh, self.num_heads = mesh, whole.num_heads // count
        with torch.no_grad():
            # (3, heads, k, d), of which a process takes its heads: (3, h k, d).
            rows = whole.qkv.weight.unflatten(0, (3, whole.num_heads, -1)).chunk(count, dim=1)[rank].flatten(1, 2)
            columns = whole.out.weight.chunk(count, dim=1)[rank]
            # Put together along the second dimension the shares are the whole matrix, with its rows in order.
            self.qkv = _weight(DTensor.from_local(rows.clone(), mesh, [Shard(1)]))
            self.out = _weight(DTensor.from_local(columns.clone(), mesh, [Shard(1)]))

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotary: Float[Tensor, "2 n half"],
        *,
        mask: Bool[Tensor, "n n"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return the attended tokens, a sum over processes that is under way; the arguments are those of `CachedAttention`."""
        # Every process has a share of the gradient of what it reads; together they are the gradient.
        local: Tensor = DTensor.from_local(x, self.mesh, [Replicate()]).to_local(grad_placements=[Partial()])
        qkv_weight, out_weight = _local(self.qkv["weight"]).flatten(0, 1), _local(self.out["weight"])
        qkv = (local @ qkv_weight.T).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, b, h, n, k)
        query, key = apply_rotary(qkv[:2], rotary).unbind()
        value = qkv[2]
        if cache is not None:
            key, value = cache.append(key, value)
        attended = attention(query, key, value, mask=mask).transpose(1, 2).flatten(2) @ out_weight.T
        return reduce_later(DTensor.from_local(attended, self.mesh, [Partial()]))


def is_cut_by_heads(value: DTensor) -> bool:
    """Return whether a parameter (or its gradient, moment or average) is a fused projection (3, h k, d) of which each process has some h."""
    return value.ndim == 3 and value.placements == (Shard(1),)


def _weight(value: DTensor) -> nn.ParameterDict:
    """Return a module with one parameter, so that its name is that of a linear layer's."""
    return nn.ParameterDict({"weight": nn.Parameter(value)})


def _local(parameter: Any) -> Tensor:
    return parameter.to_local()
