"""Fused preparation: the pyramid of keys and values in one pass over them, and the lists of a plan in one pass over it.

    pool p, row r = Σ x[key] / c        over the c real keys of p·r … p·r + p - 1

The pyramid kernel reads every key once and writes its means of 2, 4 and 8; the plain version reads every key three times and
holds float32 copies. The list kernel writes ids already sorted, without a sort.

Names in the kernels:

    head            sample · key heads + key head (pyramid)
    G, D            GROUPS groups of 8 keys of a program, BLOCK_D channels (padded to a power of two)
    quarter, pair, member   which 4 of a group's 8 keys, which 2 of those, which of these
    a suffix 2, 4, 8        a pool: total2 sums 2 keys, first4 is the first of 4, cosine8 sums cosines of first and last of 8
    row             row of the pool that is written (row of the plan in `list_kernel`);  key, first: keys
    e               log2 of the pool in `list_kernel`, 4 for skipped blocks;  hit: the columns at that pool
    whole           columns that need no mask;  found, unmasked: columns of the pool so far, those of them without a mask
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
@no_type_check
def pyramid_kernel(
    X, OUT, COSINES, x_stride_b, x_stride_g, x_stride_n, num_keys, heads, padded,
    D: tl.constexpr, BLOCK_D: tl.constexpr, GROUPS: tl.constexpr, REPLICATE: tl.constexpr, SIMILARITY: tl.constexpr,
):  # fmt: skip
    """Write the means of 2, 4 and 8 keys of G groups of one head; OUT is (b·g, padded·7/8, D), contiguous.

    With SIMILARITY also COSINES (b·g, 3, padded / 8): sums over each group of 8 of the cosines of first and last of 2, 4 and 8.
    """
    head = tl.program_id(1).to(tl.int64)
    x = X + (head // heads) * x_stride_b + (head % heads) * x_stride_g
    out = OUT + head * (padded // 8 * 7) * D
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    d = tl.arange(0, BLOCK_D)
    d_mask = d < D
    # Totals and tokens are (G, D), cosines (G,).
    total8 = tl.zeros([GROUPS, BLOCK_D], tl.float32)
    first2, first4, first8 = total8, total8, total8
    cosine2 = tl.zeros([GROUPS], tl.float32)
    cosine4, cosine8 = cosine2, cosine2
    for quarter in tl.static_range(2):
        total4 = tl.zeros([GROUPS, BLOCK_D], tl.float32)
        for pair in tl.static_range(2):
            total2 = tl.zeros([GROUPS, BLOCK_D], tl.float32)
            for member in tl.static_range(2):
                key = group * 8 + (quarter * 4 + pair * 2 + member)
                # The last key stands in for those past the end: in the cosines always, in the means if asked for.
                at = x + tl.minimum(key, num_keys - 1).to(tl.int64)[:, None] * x_stride_n + d[None, :]
                token = tl.load(at, mask=d_mask[None, :], other=0.0).to(tl.float32)
                if REPLICATE:
                    total2 += token
                else:
                    total2 += tl.where((key < num_keys)[:, None], token, 0.0)
                if SIMILARITY:
                    if member == 0:
                        first2 = token
                        if pair == 0:
                            first4 = token
                            if quarter == 0:
                                first8 = token
                    else:
                        cosine2 += _cosine(first2, token)
                        if pair == 1:
                            cosine4 += _cosine(first4, token)
                            if quarter == 1:
                                cosine8 += _cosine(first8, token)
            row2 = group * 4 + (quarter * 2 + pair)
            _store_mean(out, row2, total2, row2 * 2, num_keys, 2, padded, d, D, REPLICATE)
            total4 += total2
        row4 = group * 2 + quarter
        _store_mean(out + (padded // 2).to(tl.int64) * D, row4, total4, row4 * 4, num_keys, 4, padded, d, D, REPLICATE)
        total8 += total4
    start8 = padded // 4 * 3
    _store_mean(out + start8.to(tl.int64) * D, group, total8, group * 8, num_keys, 8, padded, d, D, REPLICATE)
    if SIMILARITY:
        at = COSINES + head * 3 * (padded // 8) + group
        exists = group < padded // 8
        tl.store(at, cosine2, mask=exists)
        tl.store(at + padded // 8, cosine4, mask=exists)
        tl.store(at + padded // 8 * 2, cosine8, mask=exists)


@triton.jit
@no_type_check
def _cosine(x, y):
    """Return x · y / (|x| |y|) of rows, (G,), with the official code's epsilons."""
    norm = tl.sqrt(tl.sum(x * x, 1) + 1e-12) * tl.sqrt(tl.sum(y * y, 1) + 1e-12)
    return tl.sum(x * y, 1) / (norm + 1e-6)


@triton.jit
@no_type_check
def _store_mean(
    out, row, total, first, num_keys, POOL: tl.constexpr, padded, d, D: tl.constexpr, REPLICATE: tl.constexpr
):  # fmt: skip
    """Store total / c, (G, D), c being the number of real keys of each group."""
    count = tl.minimum(tl.maximum(num_keys - first, 1), POOL)
    if REPLICATE:
        count = tl.full(count.shape, POOL, count.dtype)
    mean = total / count.to(tl.float32)[:, None]
    at = out + row.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(at, mean.to(out.dtype.element_ty), mask=(first < padded)[:, None] & (d < D)[None, :])


@triton.jit
@no_type_check
def list_kernel(
    POOLS, IDS, COUNTS, num_rows, num_columns, num_keys, key_block, query_block, key_offset,
    BLOCK: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Write the ids and counts of one row of a plan: a running count of the columns at each pool tells where an id goes."""
    row = tl.program_id(0).to(tl.int64)
    whole = num_keys // key_block
    if CAUSAL:
        whole = tl.minimum(whole, (key_offset + (row % num_rows).to(tl.int32) * query_block + 1) // key_block)
    POOLS += row * num_columns
    IDS += row * num_columns
    start = 0
    for e in tl.static_range(5):
        # Pools 1, 2, 4, 8, then 0: the skipped blocks.
        wanted = (1 << e) % 16
        found = 0
        unmasked = 0
        for first in range(0, num_columns, BLOCK):
            column = first + tl.arange(0, BLOCK)
            pool = tl.load(POOLS + column, mask=column < num_columns, other=255).to(tl.int32)
            # Of shape (BLOCK,), as is everything by column.
            hit = (pool == wanted).to(tl.int32)
            before = tl.cumsum(hit, 0) - hit
            tl.store(IDS + start + found + before, column, mask=hit > 0)
            found += tl.sum(hit, 0)
            unmasked += tl.sum(tl.where(column < whole, hit, 0), 0)
        if e < 4:
            tl.store(COUNTS + row * 8 + e, found)
            tl.store(COUNTS + row * 8 + 4 + e, unmasked)
        start += found


def launch_pyramid(
    x: Tensor, key_block: int, *, out: Tensor, replicate: bool = False, cosines: Tensor | None = None
) -> None:
    """Write what `pooling.build_pyramid` returns without a mask, in one pass over `x`, into `out`.

    Args:
        x: Keys or values, (b, g, n, k), any strides whose last is 1.
        out: Packed pools, (b, g, padded·7/8, k), contiguous.
        replicate: Whether the last key stands in for those past the end.
        cosines: Sums of cosines, (b, g, 3, padded / 8), float32, contiguous; None if they are not wanted.
    """
    batch, heads, num_keys, dim = x.shape
    padded = -(-num_keys // key_block) * key_block
    groups = 16
    pyramid_kernel[(triton.cdiv(padded // 8, groups), batch * heads)](
        x, out, cosines if cosines is not None else out, *x.stride()[:3], num_keys, heads, padded,
        D=dim, BLOCK_D=triton.next_power_of_2(dim), GROUPS=groups, REPLICATE=replicate, SIMILARITY=cosines is not None,
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip


def launch_lists(
    pools: Tensor, *, num_keys: int, query_block: int, key_block: int, is_causal: bool, key_offset: int
) -> tuple[Tensor, Tensor]:
    """Return ids and counts as `planning.lists.sorted_lists` does, in one pass over `pools` (b h i j)."""
    pools = pools.contiguous()
    ids = torch.empty(pools.shape, dtype=torch.int32, device=pools.device)
    counts = torch.empty(*pools.shape[:3], 8, dtype=torch.int32, device=pools.device)
    num_rows, num_columns = pools.shape[2:]
    block = min(triton.next_power_of_2(num_columns), 1024)
    list_kernel[(pools.shape[0] * pools.shape[1] * num_rows,)](
        pools, ids, counts, num_rows, num_columns, num_keys, key_block, query_block, key_offset,
        BLOCK=block, CAUSAL=is_causal, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return ids, counts
