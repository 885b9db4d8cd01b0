"""The Triton kernels as PyTorch operators, with shapes for tracing and gradients, so that `torch.compile` sees through.

Two attend, forward and backward; they take the pyramid and the plan's lists as tensors. The others prepare: the pyramid of keys
and values, differentiable, so that autograd spreads the gradients of pooled keys over the tokens; the lists of a plan; block
scores; pools.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hiergen.kernels.pyramid_attention.plan import sort_by_pool
from hiergen.kernels.pyramid_attention.pooling import (
    POOLS,
    KeyPyramid,
    TailRule,
    packed_rows,
    padded_length,
    pool_counts,
    unpack,
)
from hiergen.kernels.pyramid_attention.triton.availability import on_device

#: Most key blocks of a row that one program sorts, and most keys of a block whose means of 8 fit into one tile.
MAX_COLUMNS, MAX_KEY_BLOCK = 4096, 1024

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
    """Return output and log-sum-exp; see `launch_forward`. `pools` is for the gradient alone."""
    from hiergen.kernels.pyramid_attention.triton.forward import launch_forward

    with on_device(q):
        return launch_forward(
            _rows(q), _rows(k), _rows(v), pooled.contiguous(), log_counts, (ids, counts, order),
            query_block=query_block, key_block=key_block, is_causal=is_causal, key_offset=key_offset,
            pooled_limit=pooled_limit, scale=scale,
        )  # fmt: skip


@pyramid_attention_op.register_fake
def _attention_fake(q: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
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
    """Return the gradients of q, k, v and pooled; see `launch_backward`."""
    from hiergen.kernels.pyramid_attention.triton.backward import launch_backward

    transposed_ids, transposed_counts = sort_by_pool(pools.transpose(-1, -2).contiguous())
    with on_device(q):
        return launch_backward(
            _rows(q), _rows(k), _rows(v), pooled.contiguous(), log_counts, (ids, counts, order),
            (transposed_ids.contiguous(), transposed_counts.contiguous()),
            _rows(out), lse.contiguous(), _rows(grad_out), grad_lse.contiguous(),
            query_block=query_block, key_block=key_block, is_causal=is_causal, key_offset=key_offset,
            pooled_limit=pooled_limit, scale=scale,
        )  # fmt: skip


@pyramid_attention_backward_op.register_fake
def _attention_backward_fake(
    q: Tensor, k: Tensor, v: Tensor, pooled: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(_rows(x)) for x in (q, k, v))
    return dq, dk, dv, pooled.new_empty(pooled.shape)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:9], *output)
    ctx.numbers = inputs[9:]


def _attention_backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    gradients = pyramid_attention_backward_op(*saved, grad_out, grad_lse, *ctx.numbers)
    return *gradients, *(None for _ in range(5 + len(ctx.numbers)))


pyramid_attention_op.register_autograd(_attention_backward, setup_context=_save_inputs)


def key_pyramid(k: Tensor, v: Tensor, key_block: int, *, tail: TailRule, with_cosines: bool = False) -> KeyPyramid:
    """Return the pyramid of keys and values through one kernel; differentiable but for the cosines."""
    pooled, cosines = key_pyramid_op(k, v, key_block, tail == "replicate", with_cosines)
    return KeyPyramid(pooled, cosines if with_cosines else None)


@torch.library.custom_op(
    "hiergen::key_pyramid",
    mutates_args=(),
    schema="(Tensor k, Tensor v, int key_block, bool replicate, bool with_cosines) -> (Tensor, Tensor)",
)
def key_pyramid_op(k: Tensor, v: Tensor, key_block: int, replicate: bool, with_cosines: bool) -> tuple[Tensor, Tensor]:
    """Return the packed pyramids of keys and values, (2, b, g, r, k), and the cosines of `KeyPyramid` (or nothing)."""
    from hiergen.kernels.pyramid_attention.triton.preparation import launch_pyramid

    out, cosines = k.new_empty(_pyramid_shape(k, key_block)), _new_cosines(k, key_block, with_cosines)
    with on_device(k):
        for x, pooled, similar in ((k, out[0], cosines if with_cosines else None), (v, out[1], None)):
            launch_pyramid(_rows(x), key_block, out=pooled, replicate=replicate, cosines=similar)
    return out, cosines


@key_pyramid_op.register_fake
def _pyramid_fake(k: Tensor, v: Tensor, key_block: int, replicate: bool, with_cosines: bool) -> tuple[Tensor, Tensor]:
    return k.new_empty(_pyramid_shape(k, key_block)), _new_cosines(k, key_block, with_cosines)


def _new_cosines(k: Tensor, key_block: int, with_cosines: bool) -> Tensor:
    shape = (*k.shape[:2], 3, padded_length(k.shape[2], key_block) // 8) if with_cosines else (0,)
    return k.new_empty(shape, dtype=torch.float32)


def _pyramid_shape(k: Tensor, key_block: int) -> tuple[int, ...]:
    return (2, k.shape[0], k.shape[1], packed_rows(padded_length(k.shape[2], key_block)), k.shape[3])


def _save_lengths(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    k, _, key_block, replicate, _ = inputs
    ctx.numbers = (k.shape[2], key_block, replicate)
    ctx.mark_non_differentiable(output[1])


def _pyramid_backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
    dk, dv = (_spread(part, *ctx.numbers) for part in gradient.unbind(0))
    return dk, dv, None, None, None


def _spread(gradient: Tensor, length: int, key_block: int, replicate: bool) -> Tensor:
    """Return the gradient of the keys, (b, g, length, k), from that of their packed pyramid."""
    padded = padded_length(length, key_block)
    total = gradient.new_zeros(*gradient.shape[:2], padded, gradient.shape[3], dtype=torch.float32)
    tail: TailRule = "replicate" if replicate else "exact"
    for pool in POOLS[1:]:
        count = pool_counts(length, padded, pool, tail=tail, device=gradient.device).clamp(min=1)
        share = unpack(gradient, pool).float() / count[:, None, :, None]
        total += share.repeat_interleave(pool, dim=2)
    keys = total[:, :, :length].clone()
    if replicate:
        # The repeats of the last key are that key.
        keys[:, :, -1] += total[:, :, length:].sum(2)
    return keys.to(gradient.dtype)


key_pyramid_op.register_autograd(_pyramid_backward, setup_context=_save_lengths)


@torch.library.custom_op(
    "hiergen::plan_lists",
    mutates_args=(),
    schema="(Tensor pools, int num_keys, int query_block, int key_block, bool is_causal, int key_offset) -> (Tensor, Tensor)",
)
def plan_lists_op(
    pools: Tensor, num_keys: int, query_block: int, key_block: int, is_causal: bool, key_offset: int
) -> tuple[Tensor, Tensor]:
    """Return ids (b h i j) and counts (b h i 8) of a plan; see `plan.PlanLists`."""
    from hiergen.kernels.pyramid_attention.triton.preparation import launch_lists

    with on_device(pools):
        return launch_lists(
            pools, num_keys=num_keys, query_block=query_block, key_block=key_block, is_causal=is_causal,
            key_offset=key_offset,
        )  # fmt: skip


@plan_lists_op.register_fake
def _lists_fake(pools: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return pools.new_empty(pools.shape, dtype=torch.int32), pools.new_empty(*pools.shape[:3], 8, dtype=torch.int32)


@torch.library.custom_op(
    "hiergen::pooled_importance",
    mutates_args=(),
    schema="(Tensor q, Tensor pooled_keys, Tensor? log_counts, int num_keys, int query_block, int key_block, bool is_causal, "
    "int key_offset, float scale) -> Tensor",
)
def pooled_importance_op(
    q: Tensor, pooled_keys: Tensor, log_counts: Tensor | None, num_keys: int, query_block: int, key_block: int,
    is_causal: bool, key_offset: int, scale: float,
) -> Tensor:  # fmt: skip
    """Return block scores (b h i j), float32; see `launch_importance`."""
    from hiergen.kernels.pyramid_attention.triton.importance import launch_importance

    with on_device(q):
        return launch_importance(
            _rows(q), pooled_keys, log_counts, num_keys=num_keys,
            query_block=query_block, key_block=key_block, is_causal=is_causal, key_offset=key_offset, scale=scale,
        )  # fmt: skip


@pooled_importance_op.register_fake
def _importance_fake(
    q: Tensor, pooled_keys: Tensor, log_counts: Tensor | None, num_keys: int, query_block: int, key_block: int, *args: Any
) -> Tensor:  # fmt: skip
    shape = (*q.shape[:2], -(-q.shape[2] // query_block), -(-num_keys // key_block))
    return q.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op(
    "hiergen::assign_pools",
    mutates_args=(),
    schema="(Tensor scores, Tensor visible, int[] pools, float[] bounds, int[] units, str mode, float epsilon, float min_full, "
    "bool include) -> Tensor",
)
def assign_pools_op(
    scores: Tensor, visible: Tensor, pools: list[int], bounds: list[float], units: list[int], mode: str,
    epsilon: float, min_full: float, include: bool,
) -> Tensor:  # fmt: skip
    """Return the pools of all rows, uint8 (b h i j); see `launch_assignment`."""
    from hiergen.kernels.pyramid_attention.triton.importance import launch_assignment

    with on_device(scores):
        return launch_assignment(
            scores.float().contiguous(), visible, tuple(zip(pools, bounds, units, strict=True)), mode=mode,
            epsilon=epsilon, min_full=min_full, include=include,
        )  # fmt: skip


@assign_pools_op.register_fake
def _assign_fake(scores: Tensor, *args: Any) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.uint8)


def _rows(x: Tensor) -> Tensor:
    """Return `x` with channels next to each other, copied only if they are not."""
    return x if x.stride(-1) == 1 else x.contiguous()
