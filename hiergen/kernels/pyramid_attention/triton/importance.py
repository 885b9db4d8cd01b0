"""Fused planning: importance from queries and keys pooled by 8 without a table of scores, and the pools of a row in one program.

    s               = scale₂ · mean(q) · mean(k) + log2 c      c real keys stand in one pooled key, scale₂ = scale · log2 e
    block_lse[r, j] = log2 Σ 2^s                               over the pooled keys of block j, for pooled query r
    lse[r]          = log2 Σ_j 2^block_lse[r, j]
    score[i, j]     = mean of 2^(block_lse[r, j] - lse[r])     over the pooled queries r of block i

`block_lse_kernel` pools a tile of queries while it reads them, walks the pooled keys once and leaves block_lse and lse.
`mass_kernel` turns these into scores. `assign_kernel` sorts a row's scores in one program, where plain PyTorch runs some thirty
kernels over tables of 64-bit integers.

Names in the kernels:

    b, h            sample, query head;  head = b · num_heads + h
    R, D, T         ROWS pooled queries, BLOCK_D channels (padded to a power of two), TILE pooled keys of a step
    B               TILE / KEYS key blocks of a step;  KEYS: pooled keys per key block
    row, column     pooled queries of the program (the row of scores in `assign_kernel`), key blocks
    d, c, key       channels, places in a sorted row, pooled keys (bits to sort by in `assign_kernel`)
    s, bias         scores in base 2, log2 of the keys that a pooled key stands for
    top, safe       maximum of the scores of a block, and the same with -inf made 0, which can be subtracted
    maximum, total  running maximum of block_lse, and sum of weights relative to it;  new: the next maximum
    limit           key blocks that the row may see;  whole: its summed score;  share: cumulative share of it
    previous, end   where the run of blocks that a pool gets begins and ends;  RUNS[e]: (pool, bound, unit to round to)
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Keys and queries averaged into one.
_POOL = 8


@triton.jit
@no_type_check
def log2_of_sum(total):
    """Return the base-2 logarithm of a sum of weights, -inf for an empty one."""
    return tl.where(total > 0.0, tl.log2(tl.where(total > 0.0, total, 1.0)), float("-inf"))


@triton.jit
@no_type_check
def block_lse_kernel(
    Q, POOLED, LOG_COUNTS, BLOCK_LSE, LSE, q_strides, k_strides,
    scale2, num_queries, num_keys, key_offset, num_heads, group, num_rows, num_columns,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, KEYS: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write BLOCK_LSE (b·h, rows, key blocks) = log2 Σ 2^s and LSE (b·h, rows) over all blocks, for R pooled queries."""
    head = tl.program_id(1).to(tl.int64)
    b = head // num_heads
    h = head % num_heads
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    d_mask = d < D
    # (R, D): the mean of the 8 tokens of every pooled query.
    total_q = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for member in tl.static_range(8):
        token = row * 8 + member
        at_q = Q + b * q_strides[0] + h * q_strides[1] + token.to(tl.int64)[:, None] * q_strides[2] + d[None, :]
        total_q += tl.load(at_q, mask=(token < num_queries)[:, None] & d_mask[None, :], other=0.0).to(tl.float32)
    count = tl.minimum(tl.maximum(num_queries - row * 8, 1), 8)
    q = (total_q / count.to(tl.float32)[:, None]).to(Q.dtype.element_ty)

    keys = POOLED + b * k_strides[0] + (h // group) * k_strides[1]
    num_pooled = num_columns * KEYS
    if HAS_MASK:
        LOG_COUNTS += b * num_pooled
    blocks: tl.constexpr = TILE // KEYS
    out = BLOCK_LSE + (head * num_rows + row.to(tl.int64)[:, None]) * num_columns
    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for first in range(0, num_pooled, TILE):
        key = first + tl.arange(0, TILE)
        known = key < num_pooled
        # Keys have shape (D, T), scores (R, T).
        at_k = keys + key.to(tl.int64)[None, :] * k_strides[2] + d[:, None]
        k = tl.load(at_k, mask=known[None, :] & d_mask[:, None], other=0.0)
        if HAS_MASK:
            bias = tl.load(LOG_COUNTS + key, mask=known, other=float("-inf"))
        else:
            members = tl.minimum(tl.maximum(num_keys - key * 8, 0), 8)
            bias = tl.where(members > 0, tl.log2(tl.maximum(members, 1).to(tl.float32)), float("-inf"))
        s = tl.dot(q, k, input_precision=PRECISION) * scale2 + bias[None, :]
        if CAUSAL:
            s = tl.where((key * 8)[None, :] <= (key_offset + row * 8 + 7)[:, None], s, float("-inf"))
        # By block (R, B, KEYS); its maxima and sums are (R, B).
        s = tl.reshape(s, [ROWS, blocks, KEYS])
        top = tl.max(s, 2)
        safe = tl.where(top == float("-inf"), 0.0, top)
        lse = safe + log2_of_sum(tl.sum(tl.math.exp2(s - safe[:, :, None]), 2))
        column = first // KEYS + tl.arange(0, blocks)
        tl.store(out + column[None, :], lse, mask=(row < num_rows)[:, None] & (column < num_columns)[None, :])
        new = tl.maximum(maximum, tl.max(lse, 1))
        safe = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.math.exp2(maximum - safe) + tl.sum(tl.math.exp2(lse - safe[:, None]), 1)
        maximum = new
    safe = tl.where(maximum == float("-inf"), 0.0, maximum)
    tl.store(LSE + head * num_rows + row, safe + log2_of_sum(total), mask=row < num_rows)


@triton.jit
@no_type_check
def mass_kernel(
    BLOCK_LSE, LSE, SCORES, num_queries, num_rows, num_columns, num_blocks,
    QUERIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write SCORES (b·h, query blocks, key blocks) = mean of 2^(block_lse - lse) over the QUERIES pooled queries of a block."""
    head = tl.program_id(2).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    # Log-sum-exps have shape (QUERIES,), those of blocks (QUERIES, BLOCK).
    lse = tl.load(LSE + head * num_rows + row)
    at = BLOCK_LSE + (head * num_rows + row.to(tl.int64)[:, None]) * num_columns + column[None, :]
    block = tl.load(at, mask=(column < num_columns)[None, :], other=float("-inf"))
    # A query that sees no key, and one that is padding, pays nothing.
    pays = (lse > float("-inf")) & (row * 8 < num_queries)
    mass = tl.where(pays[:, None], tl.math.exp2(block - tl.where(pays, lse, 0.0)[:, None]), 0.0)
    at = SCORES + (head * num_blocks + tl.program_id(0)) * num_columns + column
    tl.store(at, tl.sum(mass, 0) / QUERIES, mask=column < num_columns)


@triton.jit
@no_type_check
def assign_kernel(
    SCORES, VISIBLE, POOLS, num_rows, num_columns,
    BLOCK: tl.constexpr, MODE: tl.constexpr, RUNS: tl.constexpr, EPSILON: tl.constexpr, MIN_FULL: tl.constexpr,
    INCLUDE: tl.constexpr,
):  # fmt: skip
    """Write the pools of one row, by the rules of `assignment.assign_by_sorting`; INCLUDE is the crossing or starting rule."""
    row = tl.program_id(0).to(tl.int64)
    limit = tl.load(VISIBLE + row % num_rows).to(tl.int32)
    c = tl.arange(0, BLOCK)
    seen = c < limit
    # (BLOCK,) from here on: the row's scores, sorted in descending order.
    score = tl.load(SCORES + row * num_columns + c, mask=seen, other=0.0)
    # The bits of a nonnegative float are ordered like its value; the reversed column below them lets ties go to the lower one.
    key = (tl.abs(score).to(tl.int32, bitcast=True).to(tl.int64) << 32) | (BLOCK - 1 - c).to(tl.int64)
    key = tl.sort(tl.where(seen, key, -1), descending=True)
    column = tl.where(seen, BLOCK - 1 - (key & 0xFFFFFFFF).to(tl.int32), c)
    mass = tl.where(seen, (key >> 32).to(tl.int32).to(tl.float32, bitcast=True), 0.0).to(tl.float64)
    end_mass = tl.cumsum(mass, 0)
    whole = tl.sum(mass, 0)
    # A row without any mass reaches no bound.
    share = tl.where(whole > 0, end_mass / tl.where(whole > 0, whole, 1.0), float("inf"))
    pools = tl.zeros([BLOCK], tl.int32)
    if MODE == "energy":
        if INCLUDE:
            share = tl.where(whole > 0, (end_mass - mass) / tl.where(whole > 0, whole, 1.0), float("inf"))
        lower = tl.full([], 0.0, tl.float64)
        for e in tl.static_range(len(RUNS)):
            bound = tl.full([], RUNS[e][1], tl.float64)
            if INCLUDE:
                inside = (share >= lower) & (share < bound)
            else:
                inside = (share > lower) & (share <= bound)
            pools = tl.where(inside & (mass > 0), RUNS[e][0], pools)
            lower = tl.maximum(lower, bound)
    else:
        previous = limit * 0
        for e in tl.static_range(len(RUNS)):
            bound = tl.full([], RUNS[e][1], tl.float64)
            if MODE == "threshold":
                within = tl.sum(((share <= bound + tl.full([], EPSILON, tl.float64)) & seen).to(tl.int32), 0)
                end = tl.where(within > 0, within + INCLUDE, previous)
            else:
                end = tl.floor(limit.to(tl.float64) * bound).to(tl.int32)
            if RUNS[e][2] > 1:
                end = tl.minimum(previous + tl.cdiv(tl.maximum(end - previous, 0), RUNS[e][2]) * RUNS[e][2], limit)
                end = tl.where(end == limit, previous + (limit - previous) // RUNS[e][2] * RUNS[e][2], end)
            else:
                if MODE == "threshold" and RUNS[e][0] == 1:
                    floor = tl.floor(limit.to(tl.float64) * tl.full([], MIN_FULL, tl.float64)).to(tl.int32) + 1
                    end = tl.maximum(end, floor)
                end = tl.maximum(tl.minimum(end, limit), previous)
            pools = tl.where((c >= previous) & (c < end), RUNS[e][0], pools)
            previous = end
    tl.store(POOLS + row * num_columns + column, tl.where(seen, pools, 0).to(tl.uint8), mask=c < num_columns)


def launch_importance(
    q: Tensor, pooled_keys: Tensor, log_counts: Tensor | None, *,
    num_keys: int, query_block: int, key_block: int, is_causal: bool, key_offset: int, scale: float,
) -> Tensor:  # fmt: skip
    """Return what `importance.pooled_scores` does at pools of 8, (b h i j) in float32.

    Args:
        q: `(b, h, queries, k)`, any strides whose last is 1.
        pooled_keys: `(b, g, m, k)` means of 8 keys up to whole key blocks, in the dtype of `q`, any strides whose last is 1.
        log_counts: `(b, m)` base-2 logarithm of how many keys each mean stands for, or None when all keys are real.
    """
    batch, heads, num_queries, dim = q.shape
    num_blocks, num_columns = triton.cdiv(num_queries, query_block), triton.cdiv(num_keys, key_block)
    per_query_block, per_key_block = query_block // _POOL, key_block // _POOL
    num_rows = num_blocks * per_query_block
    is_wide = q.dtype == torch.float32
    rows, tile = (16, max(32, per_key_block)) if is_wide else (64, max(64, per_key_block))
    block_lse = torch.empty(batch * heads, num_rows, num_columns, dtype=torch.float32, device=q.device)
    lse = torch.empty(batch * heads, num_rows, dtype=torch.float32, device=q.device)
    scores = torch.empty(batch, heads, num_blocks, num_columns, dtype=torch.float32, device=q.device)
    block_lse_kernel[(triton.cdiv(num_rows, rows), batch * heads)](
        q, pooled_keys, log_counts if log_counts is not None else lse, block_lse, lse,
        q.stride()[:3], pooled_keys.stride()[:3], scale * 1.4426950408889634, num_queries, num_keys, key_offset,
        heads, heads // pooled_keys.shape[1], num_rows, num_columns,
        D=dim, BLOCK_D=max(16, triton.next_power_of_2(dim)), ROWS=rows, TILE=tile, KEYS=per_key_block,
        CAUSAL=is_causal, HAS_MASK=log_counts is not None, PRECISION="ieee" if is_wide else "tf32", num_warps=4, num_stages=3,
        enable_fp_fusion=True,
    )  # fmt: skip
    block = min(triton.next_power_of_2(num_columns), 256)
    mass_kernel[(num_blocks, triton.cdiv(num_columns, block), batch * heads)](
        block_lse, lse, scores, num_queries, num_rows, num_columns, num_blocks,
        QUERIES=per_query_block, BLOCK=block, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return scores


def launch_assignment(
    scores: Tensor, visible: Tensor, runs: tuple[tuple[int, float, int], ...], *,
    mode: str, epsilon: float, min_full: float, include: bool,
) -> Tensor:  # fmt: skip
    """Return the pools of all rows, uint8 (b h i j), as `assignment.assign_pools` does.

    Args:
        scores: (b, h, i, j) in float32, contiguous.
        visible: How many leading key blocks each row may see, (i,).
        runs: (pool, bound, blocks that a run is rounded to) in the order of assignment.
        include: Whether the crossing block belongs to the finer pool ("threshold"), or a block counts by where it starts ("energy").
    """
    pools = torch.empty(scores.shape, dtype=torch.uint8, device=scores.device)
    num_rows, num_columns = scores.shape[2:]
    block = max(triton.next_power_of_2(num_columns), 16)
    assign_kernel[(scores.shape[0] * scores.shape[1] * num_rows,)](
        scores, visible, pools, num_rows, num_columns, BLOCK=block, MODE=mode, RUNS=runs, EPSILON=epsilon,
        MIN_FULL=min_full, INCLUDE=include, num_warps=4 if block <= 1024 else 16, enable_fp_fusion=True,
    )  # fmt: skip
    return pools
