"""The forward kernel. One program computes `BLOCK_M` queries of one head:

    s    = scale₂ · q · mean(k) + log2 c        c real keys stand in one pooled key, scale₂ = scale · log2 e
    lse₂ = log2 Σ 2^s                           over the pooled keys that the row of the plan reads
    out  = Σ 2^(s - lse₂) · mean(v)

Keys come in tiles of `TILE` pooled keys of one pool. A tile is filled through the row's id list, so that one tile may hold
part of a key block or many whole ones: pooled key f of a pool's list is key `f mod P` of block `ids[f div P]`, P = key
block / pool. This is right at every (key block, pool, tile). There are two loops. The first takes the tiles that need no mask,
whose bias log2(pool) is one integer per tile and is folded into the running maximum. The second takes the last tiles of every
pool (ragged end, diagonal, rest of the list), masked key by key.

Names in the kernels, here and in `backward`:

    b, h, g         sample, query head, key head that it reads;  head = b · num_heads + h
    M, D, T         BLOCK_M queries, BLOCK_D channels (padded to a power of two), TILE pooled keys: the shapes behind loads
    e               log2 of a pool: 0, 1, 2, 3 for pools 1, 2, 4, 8; a suffix 0 to 3 of a name is an e
    c0 … c3         counts: key blocks that the row reads at each pool
    s1 … s3         where each pool begins in the row's id list (pool 1 at 0)
    u0 … u3         tiles of each pool without a mask
    n0 … n3         tiles of each pool with a mask; in `backward`, where all are masked, all tiles
    t, local        tile of the program, tile of its pool;  flat: pooled key in the pool's list
    shift           log2 of P, the pooled keys of a key block at this pool
    block, rows     key blocks of a tile's keys, pooled keys counted from the start of their pool
    wide            64-bit row to load from, counted from the start of the input or of the packed pyramid
    s, p, bias      scores in base 2, their weights, log2 of c
    maximum, total  running maximum of s, and sum of the weights relative to it;  new, alpha: next maximum, rescaling

Offsets are 64-bit. `no_type_check` keeps run-time checkers of annotations off the kernels, whose source Triton reads.
"""

from __future__ import annotations

import dataclasses
import math
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from hiergen.checked import Checked


@triton.jit
@no_type_check
def pool_of_tile(t, n0, n1, n2):
    """Return e of tile `t` when pools 1, 2, 4 take `n0`, `n1`, `n2` tiles, and the tile's index in its pool."""
    e = (t >= n0).to(tl.int32) + (t >= n0 + n1).to(tl.int32) + (t >= n0 + n1 + n2).to(tl.int32)
    start = tl.where(e == 0, 0, tl.where(e == 1, n0, tl.where(e == 2, n0 + n1, n0 + n1 + n2)))
    return e, t - start


@triton.jit
@no_type_check
def pick(e, a0, a1, a2, a3):
    """Return the e-th of four numbers."""
    return tl.where(e == 0, a0, tl.where(e == 1, a1, tl.where(e == 2, a2, a3)))


@triton.jit
@no_type_check
def log_count(rows, e, log_counts, num_keys, pooled_limit, padded, valid, HAS_MASK: tl.constexpr):
    """Return log2 c (T,): how many real keys each pooled key of pool 2^e stands for; -inf for none."""
    if HAS_MASK:
        first = tl.where(e == 0, 0, 2 * padded - (padded >> (e - (e > 0).to(tl.int32))))
        bias = tl.load(log_counts + first + rows, mask=valid, other=float("-inf"))
    else:
        limit = tl.where(e == 0, num_keys, pooled_limit)
        count = tl.minimum(tl.maximum(limit - (rows << e), 0), 1 << e)
        known = valid & (count > 0)
        bias = tl.where(known, tl.log2(tl.maximum(count, 1).to(tl.float32)), float("-inf"))
    return bias


@triton.jit
@no_type_check
def pool_start(e, padded):
    """Return the first packed row of pool 2^e; 0 for pool 1, which is not packed."""
    return tl.where(e == 0, 0, padded - (padded >> (e - (e > 0).to(tl.int32))))


@triton.jit
@no_type_check
def pool_base(e, full, stride, pooled, D: tl.constexpr):
    """Return where the rows of pool 2^e begin and how far apart they are: in the input itself for pool 1, else packed."""
    base = full
    step = stride
    if e > 0:
        base = pooled
        step = tl.full([], D, stride.dtype)
    return base, step


@triton.jit
@no_type_check
def program_queries(ORDER, num_heads, group, num_rows, QUERY_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr):
    """Return the program's head, b, h, g, row of the plan and queries (M,): longest rows first, each in parts of M queries."""
    split: tl.constexpr = QUERY_BLOCK // BLOCK_M
    head = tl.program_id(1).to(tl.int64)
    b = head // num_heads
    h = head % num_heads
    plan_row = head * num_rows + tl.load(ORDER + head * num_rows + tl.program_id(0) // split)
    first_query = (plan_row - head * num_rows).to(tl.int32) * QUERY_BLOCK + tl.program_id(0) % split * BLOCK_M
    return head, b, h, h // group, plan_row, first_query + tl.arange(0, BLOCK_M)


@triton.jit
@no_type_check
def key_bases(K, V, POOLED, k_strides, v_strides, b, g, num_heads, group, packed, D: tl.constexpr):
    """Return where the keys and values of a head begin: pool 1 in the inputs, then pools 2, 4 and 8 in the pyramid."""
    k_pooled = POOLED + (b * (num_heads // group) + g) * packed * D
    v_pooled = k_pooled + (tl.num_programs(1) // group).to(tl.int64) * packed * D
    k_full = K + b * k_strides[0] + g * k_strides[1]
    v_full = V + b * v_strides[0] + g * v_strides[1]
    return k_full, v_full, k_pooled, v_pooled


@triton.jit
@no_type_check
def keys_of_tile(
    e, local, ids, s1, s2, s3, c0, c1, c2, c3, LOG_KEY_BLOCK: tl.constexpr, TILE: tl.constexpr, MASKED: tl.constexpr
):
    """Return the pooled keys of a tile (T,), counted from the start of their pool, and whether the list goes on so far."""
    flat = local * TILE + tl.arange(0, TILE)
    shift = LOG_KEY_BLOCK - e
    listed = (flat >> shift) < pick(e, c0, c1, c2, c3)
    at = ids + pick(e, 0, s1, s2, s3) + (flat >> shift)
    if MASKED:
        block = tl.load(at, mask=listed, other=0)
    else:
        block = tl.load(at)
    return (block << shift) + (flat & ((1 << shift) - 1)), listed


@triton.jit
@no_type_check
def forward_kernel(
    Q, K, V, POOLED, LOG_COUNTS, IDS, COUNTS, ORDER, OUT, LSE,
    q_strides, k_strides, v_strides, o_strides,
    scale2, num_queries, num_keys, pooled_limit, key_offset, num_heads, group, num_rows, num_columns,
    D: tl.constexpr, BLOCK_D: tl.constexpr, QUERY_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr,
    LOG_KEY_BLOCK: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write OUT = Σ softmax(s) · mean(v) and the natural log-sum-exp LSE of s, for M queries; see the top of this file.

    POOLED is (2, b, g, packed rows, D): packed pools of the keys, then of the values. LOG_COUNTS is read with HAS_MASK only.
    """
    head, b, h, g, plan_row, m_range = program_queries(ORDER, num_heads, group, num_rows, QUERY_BLOCK, BLOCK_M)
    d_range = tl.arange(0, BLOCK_D)
    d_mask = d_range < D
    q_mask = (m_range < num_queries)[:, None] & d_mask[None, :]
    q_rows = m_range.to(tl.int64)[:, None]
    # Queries have shape (M, D).
    q = tl.load(
        Q + b * q_strides[0] + h * q_strides[1] + q_rows * q_strides[2] + d_range[None, :], mask=q_mask, other=0.0
    )

    padded = num_columns << LOG_KEY_BLOCK
    packed = (padded >> 3) * 7
    k_full, v_full, k_pooled, v_pooled = key_bases(
        K, V, POOLED, k_strides, v_strides, b, g, num_heads, group, packed, D
    )
    if HAS_MASK:
        LOG_COUNTS += b * (padded + packed)

    # What the row reads, and the tiles that takes.
    ids = IDS + plan_row * num_columns
    counts = COUNTS + plan_row * 8
    c0, c1, c2, c3 = tl.load(counts), tl.load(counts + 1), tl.load(counts + 2), tl.load(counts + 3)
    s1, s2, s3 = c0, c0 + c1, c0 + c1 + c2
    if HAS_MASK:
        u0, u1, u2, u3 = 0, 0, 0, 0
    else:
        u0, u1, u2, u3 = tl.load(counts + 4), tl.load(counts + 5), tl.load(counts + 6), tl.load(counts + 7)
    u0 = (u0 << LOG_KEY_BLOCK) // TILE
    u1 = (u1 << LOG_KEY_BLOCK >> 1) // TILE
    u2 = (u2 << LOG_KEY_BLOCK >> 2) // TILE
    u3 = (u3 << LOG_KEY_BLOCK >> 3) // TILE

    # Of shape (M, D), (M,) and (M,).
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)

    # Tiles without a mask.
    for t in tl.range(0, u0 + u1 + u2 + u3, num_stages=STAGES):
        e, local = pool_of_tile(t, u0, u1, u2)
        rows, _ = keys_of_tile(e, local, ids, s1, s2, s3, c0, c1, c2, c3, LOG_KEY_BLOCK, TILE, False)
        k_base, k_step = pool_base(e, k_full, k_strides[2], k_pooled, D)
        v_base, v_step = pool_base(e, v_full, v_strides[2], v_pooled, D)
        wide = (rows + pool_start(e, padded)).to(tl.int64)
        # Keys have shape (D, T), scores (M, T).
        k = tl.load(k_base + wide[None, :] * k_step + d_range[:, None], mask=d_mask[:, None], other=0.0)
        s = tl.dot(q, k, input_precision=PRECISION)
        bias = e.to(tl.float32)
        new = tl.maximum(maximum, tl.max(s, 1) * scale2 + bias)
        p = tl.math.exp2(s * scale2 - (new - bias)[:, None])
        alpha = tl.math.exp2(maximum - new)
        total = total * alpha + tl.sum(p, 1)
        # Values have shape (T, D).
        v = tl.load(v_base + wide[:, None] * v_step + d_range[None, :], mask=d_mask[None, :], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
        maximum = new

    # Tiles with a mask: what is left of every pool, begun after its unmasked tiles.
    n0 = tl.cdiv(c0 << LOG_KEY_BLOCK, TILE) - u0
    n1 = tl.cdiv(c1 << LOG_KEY_BLOCK >> 1, TILE) - u1
    n2 = tl.cdiv(c2 << LOG_KEY_BLOCK >> 2, TILE) - u2
    n3 = tl.cdiv(c3 << LOG_KEY_BLOCK >> 3, TILE) - u3
    for t in range(0, n0 + n1 + n2 + n3):
        e, local = pool_of_tile(t, n0, n1, n2)
        local += pick(e, u0, u1, u2, u3)
        rows, listed = keys_of_tile(e, local, ids, s1, s2, s3, c0, c1, c2, c3, LOG_KEY_BLOCK, TILE, True)
        bias = log_count(rows, e, LOG_COUNTS, num_keys, pooled_limit, padded, listed, HAS_MASK)
        known = bias > float("-inf")
        k_base, k_step = pool_base(e, k_full, k_strides[2], k_pooled, D)
        v_base, v_step = pool_base(e, v_full, v_strides[2], v_pooled, D)
        wide = (rows + pool_start(e, padded)).to(tl.int64)
        # Keys have shape (D, T), scores (M, T).
        k = tl.load(
            k_base + wide[None, :] * k_step + d_range[:, None], mask=known[None, :] & d_mask[:, None], other=0.0
        )
        s = tl.dot(q, k, input_precision=PRECISION) * scale2 + bias[None, :]
        if CAUSAL:
            # (T,): position of the last key that each pooled key stands for.
            limit = tl.where(e == 0, num_keys, pooled_limit)
            last = tl.minimum((rows + 1) << e, limit) - 1
            s = tl.where(last[None, :] <= (key_offset + m_range)[:, None], s, float("-inf"))
        new = tl.maximum(maximum, tl.max(s, 1))
        # A query that has seen no key yet keeps the maximum -inf, and -inf - -inf is not a number.
        safe = tl.where(new == float("-inf"), 0.0, new)
        p = tl.math.exp2(s - safe[:, None])
        alpha = tl.math.exp2(maximum - safe)
        total = total * alpha + tl.sum(p, 1)
        # Values have shape (T, D).
        v = tl.load(
            v_base + wide[:, None] * v_step + d_range[None, :], mask=known[:, None] & d_mask[None, :], other=0.0
        )
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
        maximum = new

    empty = total == 0.0
    divisor = tl.where(empty, 1.0, total)
    out = acc / divisor[:, None]
    o = OUT + b * o_strides[0] + h * o_strides[1] + q_rows * o_strides[2] + d_range[None, :]
    tl.store(o, out.to(OUT.dtype.element_ty), mask=q_mask)
    lse = tl.where(empty, float("-inf"), (maximum + tl.log2(divisor)) * 0.6931471805599453)
    tl.store(LSE + head * num_queries + m_range, lse, mask=m_range < num_queries)


@dataclasses.dataclass(frozen=True)
class LaunchConfig(Checked):
    """How the kernels are launched.

    Attributes:
        tile: Pooled keys per tile, a power of two of at least 16.
        block_m: Queries per program; it divides the query block.
        num_warps: Warps per program.
        num_stages: Tiles in flight.
    """

    tile: int = 64
    block_m: int = 128
    num_warps: int = 8
    num_stages: int = 3

    @staticmethod
    def choose(query_block: int, head_dim: int, dtype: torch.dtype) -> LaunchConfig:
        """Return the launch that compiles without spills for these sizes (checked for sm_80 and sm_90; no time was measured)."""
        block_m = min(query_block, 128)
        width = triton.next_power_of_2(head_dim)
        if dtype == torch.float32:
            return LaunchConfig(16, min(block_m, 32), 8, 2) if width > 64 else LaunchConfig(32, min(block_m, 32), 4, 2)
        return LaunchConfig(64, block_m, 8 if block_m > 64 else 4, 3)


def launch_forward(
    q: Tensor, k: Tensor, v: Tensor, pooled: Tensor, log_counts: Tensor | None, lists: tuple[Tensor, Tensor, Tensor],
    *, query_block: int, key_block: int, is_causal: bool, key_offset: int, pooled_limit: int, scale: float,
    launch: LaunchConfig | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return output (b h q k), in the strides of `q`, and natural log-sum-exp (b h q) in float32.

    Args:
        q, k, v: `(b, h | g, tokens, k)` with any strides whose last is 1.
        pooled: `(2, b, g, r, k)`, contiguous: packed pools of keys and of values.
        log_counts: `packed_log_counts`, or None when every key is real.
        lists: ids, counts and order of a plan for all (b, h), contiguous.
        pooled_limit: Number of keys, or the padded number with tail "replicate".
    """
    batch, num_heads, num_queries, head_dim = q.shape
    ids, counts, order = lists
    out, lse = torch.empty_like(q), torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    launch = launch or LaunchConfig.choose(query_block, head_dim, q.dtype)
    block_m = min(launch.block_m, query_block)
    grid = (ids.shape[2] * (query_block // block_m), batch * num_heads)
    forward_kernel[grid](
        q, k, v, pooled, log_counts if log_counts is not None else pooled, ids, counts, order, out, lse,
        q.stride()[:3], k.stride()[:3], v.stride()[:3], out.stride()[:3],
        scale * math.log2(math.e), num_queries, k.shape[2], pooled_limit, key_offset,
        num_heads, num_heads // k.shape[1], ids.shape[2], ids.shape[3],
        D=head_dim, BLOCK_D=max(16, triton.next_power_of_2(head_dim)), QUERY_BLOCK=query_block, BLOCK_M=block_m,
        LOG_KEY_BLOCK=key_block.bit_length() - 1, TILE=launch.tile, STAGES=launch.num_stages,
        CAUSAL=is_causal, HAS_MASK=log_counts is not None,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=launch.num_warps, num_stages=launch.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    return out, lse
