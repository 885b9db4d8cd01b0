"""The backward kernels, at pooled resolution: their cost follows the density, not the coverage.

    p  = 2^(s - lse₂)                       weights, made again from the stored log-sum-exp
    ds = p · (do · v - delta)               delta = Σ out · do - dlse, per query
    dq = scale · Σ ds · k                   over the pooled keys that the row reads
    dk = scale · Σ ds · q,  dv = Σ p · do   over the queries that read the pooled key

`query_kernel` walks the lists of the forward pass and writes dq. `key_kernel` runs once per pool: a program owns part of one key
block at that pool and walks the query blocks that read it there, so that nothing is added atomically and equal inputs give equal
bits. Gradients of pooled keys come out pooled; spreading them over the tokens is the derivative of the pooling
(`pooling.build_pyramid`).

Names are those of `forward`, and:

    do, dlse        gradients of the output and of its log-sum-exp
    E, P            e of `key_kernel`'s pool, pooled keys of a key block there;  N: BLOCK_N, the part of them a program owns
    column, inside  key block of the program, its pooled keys counted inside that block
    line            the program's queries, counted over all heads
    last            position of the last key that a pooled key stands for: a causal query sees it from there on
    finer           pools before `E`, whose query blocks stand first in the transposed lists
    member          query head among those that read the program's key head
    sub             parts of M queries in a query block
"""

from __future__ import annotations

import math
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from hiergen.kernels.pyramid_attention.triton.forward import (
    LaunchConfig,
    key_bases,
    keys_of_tile,
    log_count,
    pool_base,
    pool_of_tile,
    pool_start,
    program_queries,
)


@triton.jit
@no_type_check
def query_kernel(
    Q, K, V, POOLED, LOG_COUNTS, IDS, COUNTS, ORDER, OUT, LSE, DO, DLSE, DQ, DELTA,
    q_strides, k_strides, v_strides, o_strides, do_strides, dq_strides,
    scale, scale2, num_queries, num_keys, pooled_limit, key_offset, num_heads, group, num_rows, num_columns,
    D: tl.constexpr, BLOCK_D: tl.constexpr, QUERY_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr,
    LOG_KEY_BLOCK: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write DQ = scale · Σ ds · k and DELTA = Σ out · do - dlse of M queries; see the top of this file."""
    head, b, h, g, plan_row, m_range = program_queries(ORDER, num_heads, group, num_rows, QUERY_BLOCK, BLOCK_M)
    d_range = tl.arange(0, BLOCK_D)
    d_mask = d_range < D
    m_mask = m_range < num_queries
    q_mask = m_mask[:, None] & d_mask[None, :]
    q_rows = m_range.to(tl.int64)[:, None]
    # Queries, outputs and their gradients have shape (M, D).
    q = tl.load(
        Q + b * q_strides[0] + h * q_strides[1] + q_rows * q_strides[2] + d_range[None, :], mask=q_mask, other=0.0
    )
    o = tl.load(
        OUT + b * o_strides[0] + h * o_strides[1] + q_rows * o_strides[2] + d_range[None, :], mask=q_mask, other=0.0
    )
    do = tl.load(
        DO + b * do_strides[0] + h * do_strides[1] + q_rows * do_strides[2] + d_range[None, :], mask=q_mask, other=0.0
    )
    # The log-sum-exp and delta have shape (M,).
    line = head * num_queries + m_range
    lse = tl.load(LSE + line, mask=m_mask, other=float("inf")) * 1.4426950408889634
    # A query without keys has -inf; +inf makes all its weights zero.
    lse = tl.where(lse == float("-inf"), float("inf"), lse)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1) - tl.load(DLSE + line, mask=m_mask, other=0.0)
    tl.store(DELTA + line, delta, mask=m_mask)

    padded = num_columns << LOG_KEY_BLOCK
    packed = (padded >> 3) * 7
    k_full, v_full, k_pooled, v_pooled = key_bases(
        K, V, POOLED, k_strides, v_strides, b, g, num_heads, group, packed, D
    )
    if HAS_MASK:
        LOG_COUNTS += b * (padded + packed)

    ids = IDS + plan_row * num_columns
    counts = COUNTS + plan_row * 8
    c0, c1, c2, c3 = tl.load(counts), tl.load(counts + 1), tl.load(counts + 2), tl.load(counts + 3)
    s1, s2, s3 = c0, c0 + c1, c0 + c1 + c2
    n0 = tl.cdiv(c0 << LOG_KEY_BLOCK, TILE)
    n1 = tl.cdiv(c1 << LOG_KEY_BLOCK >> 1, TILE)
    n2 = tl.cdiv(c2 << LOG_KEY_BLOCK >> 2, TILE)
    n3 = tl.cdiv(c3 << LOG_KEY_BLOCK >> 3, TILE)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for t in tl.range(0, n0 + n1 + n2 + n3, num_stages=STAGES):
        e, local = pool_of_tile(t, n0, n1, n2)
        rows, listed = keys_of_tile(e, local, ids, s1, s2, s3, c0, c1, c2, c3, LOG_KEY_BLOCK, TILE, True)
        bias = log_count(rows, e, LOG_COUNTS, num_keys, pooled_limit, padded, listed, HAS_MASK)
        known = (bias > float("-inf"))[None, :] & d_mask[:, None]
        k_base, k_step = pool_base(e, k_full, k_strides[2], k_pooled, D)
        v_base, v_step = pool_base(e, v_full, v_strides[2], v_pooled, D)
        wide = (rows + pool_start(e, padded)).to(tl.int64)
        # Keys and values have shape (D, T), scores (M, T).
        k = tl.load(k_base + wide[None, :] * k_step + d_range[:, None], mask=known, other=0.0)
        v = tl.load(v_base + wide[None, :] * v_step + d_range[:, None], mask=known, other=0.0)
        s = tl.dot(q, k, input_precision=PRECISION) * scale2 + bias[None, :]
        if CAUSAL:
            last = tl.minimum((rows + 1) << e, tl.where(e == 0, num_keys, pooled_limit)) - 1
            s = tl.where(last[None, :] <= (key_offset + m_range)[:, None], s, float("-inf"))
        p = tl.math.exp2(s - lse[:, None])
        ds = p * (tl.dot(do, v, input_precision=PRECISION) - delta[:, None])
        acc = tl.dot(ds.to(k.dtype), tl.trans(k), acc, input_precision=PRECISION)

    dq = DQ + b * dq_strides[0] + h * dq_strides[1] + q_rows * dq_strides[2] + d_range[None, :]
    tl.store(dq, (acc * scale).to(DQ.dtype.element_ty), mask=q_mask)


@triton.jit
@no_type_check
def key_kernel(
    Q, K, V, LOG_COUNTS, IDS, COUNTS, LSE, DO, DELTA, DK, DV,
    q_strides, k_strides, v_strides, do_strides, dk_strides, dv_strides,
    scale, scale2, num_queries, num_keys, pooled_limit, key_offset, num_heads, group, num_columns, num_rows,
    E: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, QUERY_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr,
    LOG_KEY_BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write DK = scale · Σ ds · q and DV = Σ p · do of N pooled keys at pool 2^E; K, V, DK and DV hold that pool alone.

    IDS and COUNTS are the plan's transpose: per key block the query blocks that read it, sorted by pool. Scores are transposed
    here: keys are rows.
    """
    P: tl.constexpr = (1 << LOG_KEY_BLOCK) >> E
    split: tl.constexpr = (P + BLOCK_N - 1) // BLOCK_N
    key_head = tl.program_id(1).to(tl.int64)
    key_heads = num_heads // group
    b = key_head // key_heads
    g = key_head % key_heads
    column = tl.program_id(0) // split
    # Pooled keys of the program, of shape (N,).
    inside = tl.program_id(0) % split * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = column * P + inside
    padded = num_columns << LOG_KEY_BLOCK
    if HAS_MASK:
        LOG_COUNTS += b * (padded + (padded >> 3) * 7)
    level = tl.full([], E, tl.int32)
    bias = log_count(rows, level, LOG_COUNTS, num_keys, pooled_limit, padded, inside < P, HAS_MASK)
    d_range = tl.arange(0, BLOCK_D)
    d_mask = d_range < D
    known = (bias > float("-inf"))[:, None] & d_mask[None, :]
    wide = rows.to(tl.int64)[:, None]
    # Keys and values have shape (N, D).
    k = tl.load(K + b * k_strides[0] + g * k_strides[1] + wide * k_strides[2] + d_range[None, :], mask=known, other=0.0)
    v = tl.load(V + b * v_strides[0] + g * v_strides[1] + wide * v_strides[2] + d_range[None, :], mask=known, other=0.0)
    last = tl.minimum((rows + 1) << E, num_keys if E == 0 else pooled_limit) - 1
    bias = bias[:, None]
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    sub: tl.constexpr = QUERY_BLOCK // BLOCK_M

    # The query heads that read this key head, and of each the query blocks that read this key block at this pool.
    for member in range(0, group):
        head = b * num_heads + g * group + member
        counts = COUNTS + (head * num_columns + column) * 4
        start = 0
        for finer in tl.static_range(E):
            start += tl.load(counts + finer)
        ids = IDS + (head * num_columns + column) * num_rows + start
        q_base = Q + b * q_strides[0] + (g * group + member) * q_strides[1]
        do_base = DO + b * do_strides[0] + (g * group + member) * do_strides[1]
        for t in tl.range(0, tl.load(counts + E) * sub, num_stages=STAGES):
            m_range = tl.load(ids + t // sub) * QUERY_BLOCK + t % sub * BLOCK_M + tl.arange(0, BLOCK_M)
            m_mask = m_range < num_queries
            q_rows = m_range.to(tl.int64)[:, None]
            q_mask = m_mask[:, None] & d_mask[None, :]
            # Queries and output gradients have shape (M, D), the two below (M,).
            q = tl.load(q_base + q_rows * q_strides[2] + d_range[None, :], mask=q_mask, other=0.0)
            do = tl.load(do_base + q_rows * do_strides[2] + d_range[None, :], mask=q_mask, other=0.0)
            lse = tl.load(LSE + head * num_queries + m_range, mask=m_mask, other=float("inf")) * 1.4426950408889634
            lse = tl.where(lse == float("-inf"), float("inf"), lse)
            delta = tl.load(DELTA + head * num_queries + m_range, mask=m_mask, other=0.0)
            # Scores, transposed, of shape (N, M).
            s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale2 + bias
            if CAUSAL:
                s = tl.where(last[:, None] <= (key_offset + m_range)[None, :], s, float("-inf"))
            p = tl.math.exp2(s - lse[None, :])
            dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
            ds = p * (tl.dot(v, tl.trans(do), input_precision=PRECISION) - delta[None, :])
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)

    # Pooled keys that stand for no key get zeros: their rows exist in the packed tensor.
    written = (inside < P) & (rows < (num_keys if E == 0 else padded >> E))
    written = written[:, None] & d_mask[None, :]
    dk_at = DK + b * dk_strides[0] + g * dk_strides[1] + wide * dk_strides[2] + d_range[None, :]
    dv_at = DV + b * dv_strides[0] + g * dv_strides[1] + wide * dv_strides[2] + d_range[None, :]
    tl.store(dk_at, (dk * scale).to(DK.dtype.element_ty), mask=written)
    tl.store(dv_at, dv.to(DV.dtype.element_ty), mask=written)


def backward_launches(query_block: int, head_dim: int, dtype: torch.dtype) -> tuple[LaunchConfig, LaunchConfig]:
    """Return how to launch the query kernel and the key kernel, whose `tile` is the part of a key block that a program owns."""
    wide = head_dim > 64
    block_m = min(query_block, 64)
    if dtype == torch.float32:
        both = LaunchConfig(16, min(block_m, 32), 8 if wide else 4, 1)
        return both, both
    # Head sizes above 64 need the smaller tiles: the gradients of keys and values stay in registers.
    return LaunchConfig(64, block_m, 4, 2), LaunchConfig(64, block_m, 8 if wide else 4, 2)


def launch_backward(
    q: Tensor, k: Tensor, v: Tensor, pooled: Tensor, log_counts: Tensor | None,
    lists: tuple[Tensor, Tensor, Tensor], transposed: tuple[Tensor, Tensor],
    out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor,
    *, query_block: int, key_block: int, is_causal: bool, key_offset: int, pooled_limit: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of `q`, of `k` and `v` where they are read at pool 1, and of `pooled`.

    Args as in `launch_forward`, and:
        transposed: ids and counts of `sort_by_pool` on the transposed pools, contiguous.
        out, lse: What `launch_forward` returned.
        grad_out: Gradient of `out`, (b h q k), any strides whose last is 1.
        grad_lse: Gradient of `lse`, (b h q), float32, contiguous.
    """
    batch, num_heads, num_queries, head_dim = q.shape
    key_heads, num_keys = k.shape[1], k.shape[2]
    ids, counts, order = lists
    num_rows, num_columns = ids.shape[2:]
    padded = num_columns * key_block
    dq, dk, dv, dpooled = (torch.empty_like(x) for x in (q, k, v, pooled))
    delta = torch.empty_like(lse)
    for_queries, for_keys = backward_launches(query_block, head_dim, q.dtype)
    lengths = (num_queries, num_keys, pooled_limit, key_offset)
    sizes = (scale, scale * math.log2(math.e), *lengths, num_heads, num_heads // key_heads)
    constants = {
        "D": head_dim, "BLOCK_D": max(16, triton.next_power_of_2(head_dim)), "QUERY_BLOCK": query_block,
        "LOG_KEY_BLOCK": key_block.bit_length() - 1, "CAUSAL": is_causal, "HAS_MASK": log_counts is not None,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32", "enable_fp_fusion": True,
    }  # fmt: skip
    logs = log_counts if log_counts is not None else pooled
    query_kernel[(num_rows * (query_block // for_queries.block_m), batch * num_heads)](
        q, k, v, pooled, logs, ids, counts, order, out, lse, grad_out, grad_lse, dq, delta,
        *(x.stride()[:3] for x in (q, k, v, out, grad_out, dq)), *sizes, num_rows, num_columns,
        BLOCK_M=for_queries.block_m, TILE=for_queries.tile, STAGES=for_queries.num_stages,
        num_warps=for_queries.num_warps, num_stages=for_queries.num_stages, **constants,
    )  # fmt: skip
    start = 0
    for e in range(4):
        keys, values, dkeys, dvalues = k, v, dk, dv
        if e > 0:
            end = start + (padded >> e)
            keys, values, dkeys, dvalues = (x[:, :, start:end] for x in (*pooled.unbind(0), *dpooled.unbind(0)))
            start = end
        part = key_block >> e
        block_n = max(16, min(for_keys.tile, part))
        key_kernel[(num_columns * -(-part // block_n), batch * key_heads)](
            q, keys, values, logs, *transposed, lse, grad_out, delta, dkeys, dvalues,
            *(x.stride()[:3] for x in (q, keys, values, grad_out, dkeys, dvalues)), *sizes, num_columns, num_rows,
            E=e, BLOCK_M=for_keys.block_m, BLOCK_N=block_n, STAGES=for_keys.num_stages,
            num_warps=for_keys.num_warps, num_stages=for_keys.num_stages, **constants,
        )  # fmt: skip
    return dq, dk, dv, dpooled
