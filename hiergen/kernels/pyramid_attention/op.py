"""The Triton kernels as PyTorch operators, with shapes for tracing and gradients, so that `torch.compile` sees through.

The operators take the pyramid and the plan's lists as tensors. `triton_attention` makes them from a plan; pooling stays
outside, differentiable, so that autograd spreads the gradients of pooled keys over the tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hiergen.kernels.pyramid_attention.plan import PyramidPlan, sort_by_pool
from hiergen.kernels.pyramid_attention.pooling import build_pyramid, packed_log_counts
from hiergen.kernels.pyramid_attention.prepare import KeyPyramid, key_pyramid, on_device

# Schemas are written out: PyTorch cannot derive them when annotations are checked at run time.
_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor pooled, Tensor? log_counts, Tensor pools, Tensor ids, Tensor counts, Tensor order"
_GIVEN = "Tensor out, Tensor lse, Tensor grad_out, Tensor grad_lse"
_NUMBERS = "int query_block, int key_block, bool is_causal, int key_offset, int pooled_limit, float scale"


@torch.library.custom_op(
    "hiergen::pyramid_attention", mutates_args=(), schema=f"({_INPUTS}, {_NUMBERS}) -> (Tensor, Tensor)"
)
def pyramid_attention_op(
    q: Tensor, k: Tensor, v: Tensor, pooled: Tensor, log_counts: Tensor | None, pools: Tensor,
    ids: Tensor, counts: Tensor, order: Tensor,
    query_block: int, key_block: int, is_causal: bool, key_offset: int, pooled_limit: int, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return output and log-sum-exp; see `triton_forward.forward`. `pools` is for the gradient alone."""
    from hiergen.kernels.pyramid_attention import triton_forward

    with on_device(q):
        return triton_forward.forward(
            _rows(q), _rows(k), _rows(v), pooled.contiguous(), log_counts, (ids, counts, order),
            query_block=query_block, key_block=key_block, is_causal=is_causal, key_offset=key_offset,
            pooled_limit=pooled_limit, scale=scale,
        )  # fmt: skip


@pyramid_attention_op.register_fake
def _forward_fake(q: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(_rows(q)), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op(
    "hiergen::pyramid_attention_backward",
    mutates_args=(),
    schema=f"({_INPUTS}, {_GIVEN}, {_NUMBERS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def pyramid_attention_backward_op(
    q: Tensor, k: Tensor, v: Tensor, pooled: Tensor, log_counts: Tensor | None, pools: Tensor,
    ids: Tensor, counts: Tensor, order: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor,
    query_block: int, key_block: int, is_causal: bool, key_offset: int, pooled_limit: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k, v and pooled; see `triton_backward.backward`."""
    from hiergen.kernels.pyramid_attention import triton_backward

    transposed_ids, transposed_counts = sort_by_pool(pools.transpose(-1, -2).contiguous())
    with on_device(q):
        return triton_backward.backward(
            _rows(q), _rows(k), _rows(v), pooled.contiguous(), log_counts, (ids, counts, order),
            (transposed_ids.contiguous(), transposed_counts.contiguous()),
            _rows(out), lse.contiguous(), _rows(grad_out), grad_lse.contiguous(),
            query_block=query_block, key_block=key_block, is_causal=is_causal, key_offset=key_offset,
            pooled_limit=pooled_limit, scale=scale,
        )  # fmt: skip


@pyramid_attention_backward_op.register_fake
def _backward_fake(
    q: Tensor, k: Tensor, v: Tensor, pooled: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(_rows(q)),
        torch.empty_like(_rows(k)),
        torch.empty_like(_rows(v)),
        pooled.new_empty(pooled.shape),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:9], *output)
    ctx.numbers = inputs[9:]


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    gradients = pyramid_attention_backward_op(*saved, grad_out, grad_lse, *ctx.numbers)
    return *gradients, *(None for _ in range(5 + len(ctx.numbers)))


pyramid_attention_op.register_autograd(_backward, setup_context=_save)


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
        pyramid: Of these keys and values, without a mask, where it has been built already.
    """
    limit, factor = plan.pooled_limit, q.shape[-1] ** -0.5 if scale is None else scale
    return pyramid_attention_op(
        q, k, v, *prepare(q, k, v, plan, key_mask=key_mask, pyramid=pyramid),
        plan.query_block, plan.key_block, plan.is_causal, plan.key_offset, limit, factor,
    )  # fmt: skip


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: PyramidPlan,
    *,
    key_mask: Tensor | None = None,
    pyramid: KeyPyramid | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    """Return what the operator reads beside queries, keys and values: pyramid, log counts, pools, ids, counts, order."""
    plan = plan.with_lists()
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


def _rows(x: Tensor) -> Tensor:
    """Return `x` with channels next to each other, copied only if they are not."""
    return x if x.stride(-1) == 1 else x.contiguous()
