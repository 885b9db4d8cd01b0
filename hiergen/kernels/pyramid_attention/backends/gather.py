"""Pyramid attention in plain PyTorch at a cost that follows the plan: each query block gathers the keys that it reads.

For CPUs, and for any device without kernels of its own; differentiable. Every row of the plan costs the time and memory of the
longest one: near the plan's density for quotas, more where thresholds make rows uneven.

Letters: `b` batch, `h` query heads, `g` key heads, `q` queries, `n` keys, `k` channels per head, `i` query blocks, `r` rows of all
pools packed (pool 1 first), `m` keys that a row reads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from hiergen.kernels.dispatch import AttentionRequest, Backend
from hiergen.kernels.pyramid_attention.plan import PyramidPlan
from hiergen.kernels.pyramid_attention.pooling import POOLS, build_pyramid, pool_counts


def gather_attention(
    q: Float[Tensor, "b h q k"],
    k: Float[Tensor, "b g n k"],
    v: Float[Tensor, "b g n k"],
    plan: PyramidPlan,
    *,
    scale: float | None = None,
    key_mask: Bool[Tensor, "b n"] | None = None,
) -> tuple[Float[Tensor, "b h q k"], Float[Tensor, "b h q"]]:
    """Return output and natural log-sum-exp; arguments as `reference_attention`."""
    wide = torch.promote_types(q.dtype, torch.float32)
    batch, heads, length, channels = q.shape
    rows, bias = _rows_read(plan, key_mask, q.device)
    packed = [_packed(x.to(wide), plan, key_mask) for x in (k, v)]
    # Heads of all samples laid end to end: which of them, then which row.
    head = torch.arange(heads, device=q.device) // (heads // k.shape[1])
    first = torch.arange(batch, device=q.device)[:, None] * k.shape[1] + head
    at = first[:, :, None, None] * packed[0].shape[2] + rows
    keys, values = (F.embedding(at, x.flatten(0, 2)) for x in packed)
    blocks = F.pad(q.to(wide), (0, 0, 0, rows.shape[2] * plan.query_block - length)).unflatten(2, (rows.shape[2], -1))
    scores = (channels**-0.5 if scale is None else scale) * (blocks @ keys.transpose(-1, -2)) + bias.to(wide)
    top = scores.amax(-1, keepdim=True)
    empty = top == -torch.inf
    weights = scores.masked_fill(empty, 0.0).softmax(-1)
    out = (weights @ values).masked_fill(empty, 0.0)
    # The weight of the largest score s is exp(s - lse).
    lse = (top - weights.amax(-1, keepdim=True).log()).masked_fill(empty, -torch.inf)
    return out.flatten(2, 3)[:, :, :length].to(q.dtype), lse.flatten(2)[:, :, :length]


def _packed(x: Tensor, plan: PyramidPlan, key_mask: Tensor | None) -> Tensor:
    """Return pool 1, padded to whole blocks, and the packed pyramid below it, (b, g, r, k); keys that do not exist are zero."""
    pyramid = build_pyramid(x, plan.key_block, key_mask=key_mask, tail=plan.tail)
    if key_mask is not None:
        # `where`, not a product: padding may hold NaN.
        x = torch.where(key_mask[:, None, :, None], x, 0.0)
    return torch.cat([F.pad(x, (0, 0, 0, plan.padded_keys - plan.num_keys)), pyramid], dim=2)


def _rows_read(plan: PyramidPlan, key_mask: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the packed rows that each row of the plan reads, (B, H, i, m), and what is added to their scores.

    B and H are 1 where the plan or the mask is the same for all. The bias is the log of the keys that a row stands for, -inf where
    nothing is read; (B, H, i, 1 or query block, m).
    """
    counts = torch.cat(
        [
            pool_counts(plan.num_keys, plan.padded_keys, pool, key_mask=key_mask, tail=plan.tail, device=device)
            for pool in POOLS
        ],
        dim=1,
    )
    cells = [(plan.pools == pool).repeat_interleave(plan.key_block // pool, dim=-1) for pool in POOLS]
    is_read = torch.cat(cells, dim=-1) & (counts > 0)[:, None, None]
    lengths = is_read.sum(-1)
    most = max(int(lengths.max()), 1)
    found = is_read.nonzero()
    starts = lengths.flatten().cumsum(0) - lengths.flatten()
    place = torch.arange(len(found), device=device) - starts.repeat_interleave(lengths.flatten())
    rows = torch.zeros(*lengths.shape, most, dtype=torch.int64, device=device)
    rows[*found[:, :3].T, place] = found[:, 3]
    bias = counts.double().log()[:, None, None].expand(is_read.shape).gather(-1, rows)
    bias = bias.masked_fill(torch.arange(most, device=device) >= lengths[..., None], -torch.inf)[..., None, :]
    if plan.is_causal:
        bias = bias.masked_fill(_is_hidden(plan, rows), -torch.inf)
    return rows, bias


def _is_hidden(plan: PyramidPlan, rows: Tensor) -> Tensor:
    """Return where a key's last member lies after the query, (B, H, i, query block, m)."""
    last = [
        ((torch.arange(plan.padded_keys // pool, device=rows.device) + 1) * pool).clamp(
            max=plan.pooled_limit if pool > 1 else plan.num_keys
        )
        - 1
        for pool in POOLS
    ]
    queries = torch.arange(rows.shape[2] * plan.query_block, device=rows.device).unflatten(0, (rows.shape[2], -1))
    return torch.cat(last)[rows][..., None, :] > (plan.key_offset + queries)[..., None]


def _refuse(request: AttentionRequest, is_named: bool) -> str | None:
    if torch.compiler.is_compiling() and not is_named:
        return "its sizes depend on the plan's values, which splits a compiled graph"
    return None


BACKEND = Backend("gather", "memory for the keys that every query block reads", gather_attention, _refuse)
