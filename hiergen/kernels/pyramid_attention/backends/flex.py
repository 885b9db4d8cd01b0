"""Pyramid attention through PyTorch's FlexAttention: one call per pool; their outputs are merged by log-sum-exp.

This is the portable way, for GPUs without our kernels, and a second witness in tests. It cannot join blocks that are not
neighbors into one tile, so coarse pools run in small tiles. On a CPU it runs uncompiled, which takes the memory of dense
attention, and without gradients, which FlexAttention does not have there. It has been run on CPUs only.

Letters: `b` batch, `h` query heads, `g` key heads, `q` queries, `n` keys, `k` channels per head.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, no_type_check

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hiergen.kernels.dispatch import AttentionRequest, Backend
from hiergen.kernels.pyramid_attention.plan import PyramidPlan
from hiergen.kernels.pyramid_attention.pooling import POOLS, build_pyramid, pool_counts, unpack

#: Smallest key block that a compiled FlexAttention can tile.
_SMALLEST_BLOCK = 16


def flex_attention(
    q: Float[Tensor, "b h q k"],
    k: Float[Tensor, "b g n k"],
    v: Float[Tensor, "b g n k"],
    plan: PyramidPlan,
    *,
    scale: float | None = None,
    key_mask: Bool[Tensor, "b n"] | None = None,
) -> tuple[Float[Tensor, "b h q k"], Float[Tensor, "b h q"]]:
    """Return output and natural log-sum-exp; arguments as `reference_attention`."""
    outputs, sums = [], []
    pyramids = [build_pyramid(x, plan.key_block, key_mask=key_mask, tail=plan.tail) for x in (k, v)]
    for pool in POOLS:
        keys, values = (k, v) if pool == 1 else (unpack(x, pool) for x in pyramids)
        if pool == 1 and key_mask is not None:
            # Masked keys may hold NaN, which a weight of zero does not silence.
            keys, values = (torch.where(key_mask[:, None, :, None], x, 0.0) for x in (keys, values))
        out, lse = _attend_pool(q, keys, values, plan, pool, scale, key_mask)
        outputs.append(out)
        sums.append(lse)
    return merge(outputs, sums)


def merge(outputs: list[Tensor], sums: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return attention over the union of disjoint key sets, from the outputs and log-sum-exps over each."""
    lse = torch.stack(sums)
    total = lse.logsumexp(dim=0)
    weight = (lse - torch.where(total.isinf(), 0.0, total)).exp()
    out = sum(
        w[..., None] * torch.where(w[..., None] > 0, o.to(w.dtype), 0.0) for w, o in zip(weight, outputs, strict=True)
    )
    assert isinstance(out, Tensor)
    return out.to(outputs[0].dtype), total


def _attend_pool(
    q: Tensor, keys: Tensor, values: Tensor, plan: PyramidPlan, pool: int, scale: float | None, key_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return attention over the blocks read at `pool` alone, and its log-sum-exp."""
    from torch.nn.attention.flex_attention import AuxRequest, BlockMask

    device = q.device
    counts = pool_counts(plan.num_keys, plan.padded_keys, pool, key_mask=key_mask, tail=plan.tail, device=device)
    counts = counts[:, : keys.shape[2]].expand(q.shape[0], -1).contiguous()
    bias = counts.clamp(min=1).float().log().to(torch.promote_types(q.dtype, torch.float32))
    # Run-time checkers of annotations keep a record that FlexAttention's tracing may not touch, hence `no_type_check`.
    cells = plan.pools.expand(q.shape[0], q.shape[1], -1, -1) == pool
    limit = plan.pooled_limit if pool > 1 else plan.num_keys
    query_block, per_block, offset = plan.query_block, plan.key_block // pool, plan.key_offset

    @no_type_check
    def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen = cells[b, h, i // query_block, j // per_block] & (counts[b, j] > 0)
        if plan.is_causal:
            seen = seen & (torch.clamp((j + 1) * pool, max=limit) - 1 <= offset + i)
        return seen

    @no_type_check
    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + bias[b, j]

    visited = cells
    joined = max(_SMALLEST_BLOCK // per_block, 1)
    if joined > 1:
        missing = -cells.shape[-1] % joined
        visited = torch.nn.functional.pad(cells, (0, missing)).unflatten(-1, (-1, joined)).any(-1)
    ids = (~visited).to(torch.uint8).argsort(dim=-1, stable=True).to(torch.int32)
    block_mask = BlockMask.from_kv_blocks(
        visited.sum(-1, dtype=torch.int32), ids, BLOCK_SIZE=(query_block, per_block * joined), mask_mod=mask_mod,
        seq_lengths=(q.shape[2], keys.shape[2]), compute_q_blocks=device.type != "cpu",
    )  # fmt: skip
    options = (
        None if device.type == "cpu" else {"BLOCK_M": min(query_block, 64), "BLOCK_N": min(per_block * joined, 64)}
    )
    out, aux = flex_call(device)(
        q, keys, values, score_mod=score_mod, block_mask=block_mask, scale=scale, enable_gqa=q.shape[1] != keys.shape[1],
        kernel_options=options, return_aux=AuxRequest(lse=True),
    )  # fmt: skip
    return out, aux.lse


def flex_call(device: torch.device) -> Callable[..., Any]:
    """Return PyTorch's FlexAttention as it runs on a device: compiled, but for a CPU."""
    return _eager() if device.type == "cpu" else _compiled()


@functools.cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention import flex_attention as module

    return torch.compile(module.flex_attention)


def _eager() -> Callable[..., Any]:
    from torch.nn.attention import flex_attention as module

    def call(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            # It warns that it was not compiled, which is meant here.
            warnings.filterwarnings("ignore", message=".*flex_attention called without torch.compile.*")
            return module.flex_attention(*args, **kwargs)

    return call


def _refuse(request: AttentionRequest, is_named: bool) -> str | None:
    if request.device.type not in ("cpu", "cuda", "xpu"):
        return f"the inputs are on {request.device.type}"
    if request.device.type == "cpu" and not is_named:
        return "FlexAttention does not skip blocks on a CPU unless compiled"
    if request.device.type == "cpu" and request.needs_grad:
        return "FlexAttention has no gradient on a CPU"
    if request.device.type == "cuda" and request.head_dim & (request.head_dim - 1):
        return f"the head size is {request.head_dim}, no power of two"
    return None


BACKEND = Backend("flex", "a GPU that PyTorch compiles for, or a CPU without gradients", flex_attention, _refuse)
