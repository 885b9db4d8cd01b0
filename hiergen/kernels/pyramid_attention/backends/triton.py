"""Pyramid attention through our Triton kernels: NVIDIA GPUs, and the interpreter on a CPU for tests.

Letters: `b` batch, `h` query heads, `g` key heads, `q` queries, `n` keys, `k` channels per head.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hiergen.kernels.dispatch import AttentionRequest, Backend
from hiergen.kernels.pyramid_attention.plan import PyramidPlan
from hiergen.kernels.pyramid_attention.planning.lists import with_lists
from hiergen.kernels.pyramid_attention.pooling import KeyPyramid, build_pyramid, packed_log_counts
from hiergen.kernels.pyramid_attention.triton.availability import triton_problem
from hiergen.kernels.pyramid_attention.triton.operators import key_pyramid, pyramid_attention_op


def triton_attention(
    q: Float[Tensor, "b h q k"],
    k: Float[Tensor, "b g n k"],
    v: Float[Tensor, "b g n k"],
    plan: PyramidPlan,
    *,
    scale: float | None = None,
    key_mask: Bool[Tensor, "b n"] | None = None,
    pyramid: KeyPyramid | None = None,
) -> tuple[Float[Tensor, "b h q k"], Float[Tensor, "b h q"]]:
    """Return output and natural log-sum-exp (float32) through the Triton kernels; arguments as `reference_attention`.

    Args:
        pyramid: The pyramid of these keys and values, without a mask, if it has been built already.
    """
    limit, factor = plan.pooled_limit, q.shape[-1] ** -0.5 if scale is None else scale
    return pyramid_attention_op(
        q, k, v, *kernel_inputs(q, k, v, plan, key_mask=key_mask, pyramid=pyramid),
        plan.query_block, plan.key_block, plan.is_causal, plan.key_offset, limit, factor,
    )  # fmt: skip


def kernel_inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: PyramidPlan,
    *,
    key_mask: Tensor | None = None,
    pyramid: KeyPyramid | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    """Return what the operator reads beside queries, keys and values: pyramid, log counts, pools, ids, counts, order."""
    plan = with_lists(plan)
    lists = plan.lists
    assert lists is not None
    pools, ids, counts, order = (
        x.expand(*q.shape[:2], *x.shape[2:]).contiguous() for x in (plan.pools, lists.ids, lists.counts, lists.order)
    )
    if key_mask is None:
        pyramid = pyramid or key_pyramid(k, v, plan.key_block, tail=plan.tail)
        return pyramid.pooled, None, pools, ids, counts, order
    pooled = torch.stack([build_pyramid(x, plan.key_block, key_mask=key_mask) for x in (k, v)])
    log_counts = packed_log_counts(plan.num_keys, plan.padded_keys, key_mask=key_mask)
    return pooled, log_counts, pools, ids, counts, order


def _refuse(request: AttentionRequest, is_named: bool) -> str | None:
    if request.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"the inputs are {request.dtype}"
    if request.head_dim > 128:
        return f"the head size is {request.head_dim}, above 128"
    index = request.device.index
    problem = triton_problem(request.device.type, -1 if index is None else index)
    if problem is not None or request.device.type == "cuda":
        return problem
    if not is_named:
        return "Triton's interpreter is for tests and runs only when the backend is named"
    if request.dtype == torch.bfloat16:
        return "Triton's interpreter computes bfloat16 wrongly"
    return None


BACKEND = Backend("triton", "an NVIDIA GPU of compute capability 8.0, or TRITON_INTERPRET=1", triton_attention, _refuse)
