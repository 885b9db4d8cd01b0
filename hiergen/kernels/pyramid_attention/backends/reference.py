"""Pyramid attention as the formula says, in plain PyTorch: the specification that the kernels are tested against.

For a query q and a key block read at pool p, whose pooled keys are means of c real keys:

    score = scale · q · mean(k) + log c            out = Σ softmax(score) · mean(v)

over all blocks with p > 0. A mean of c keys weighs as c keys do. Memory grows like that of the dense product; differentiable.

Letters: `b` batch, `h` query heads, `g` key heads, `q` queries, `n` keys, `k` channels per head.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hiergen.kernels.dispatch import Backend
from hiergen.kernels.pyramid_attention.plan import PyramidPlan
from hiergen.kernels.pyramid_attention.pooling import POOLS, build_pyramid, pool_counts, unpack


def reference_attention(
    q: Float[Tensor, "b h q k"],
    k: Float[Tensor, "b g n k"],
    v: Float[Tensor, "b g n k"],
    plan: PyramidPlan,
    *,
    scale: float | None = None,
    key_mask: Bool[Tensor, "b n"] | None = None,
) -> tuple[Float[Tensor, "b h q k"], Float[Tensor, "b h q"]]:
    """Return the attention output and the natural log-sum-exp of the scores.

    A query without any key gives zeros and -inf. Computes in the dtype of the inputs, at least float32.

    Args:
        k: `g` divides `h`; query head i reads key head i // (h / g).
        plan: At which pool every query block reads every key block.
        scale: Factor of the products q · k, k^-1/2 by default.
        key_mask: True for real keys.

    Source:
        Pyramid Sparse Attention, arXiv:2512.04025, section 3. The official code counts the repeated last key as real
        ("replicate") and gives NaN for a query without keys.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // k.shape[1]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores, values = [], []
    for pool in POOLS:
        keys, vals = (pooled(x.to(wide), plan, pool, key_mask=key_mask) for x in (k, v))
        keys, vals = (x.repeat_interleave(group, dim=1) for x in (keys, vals))
        bias, visible = pool_bias(plan, pool, key_mask=key_mask, device=q.device)
        score = (
            scale * (q.to(wide) @ keys.transpose(-1, -2)) + torch.where(bias.isinf(), 0.0, bias).to(wide)[:, None, None]
        )
        scores.append(score.masked_fill(~visible, -torch.inf))
        values.append(vals)
    joined = torch.cat(scores, dim=-1)
    maximum = joined.amax(-1, keepdim=True).detach()
    maximum = torch.where(maximum.isinf(), 0.0, maximum)
    weight = (joined - maximum).exp()
    total = weight.sum(-1, keepdim=True)
    empty = total == 0
    out = (weight @ torch.cat(values, dim=2)) / total.masked_fill(empty, 1.0)
    lse = (maximum + total.masked_fill(empty, 1.0).log()).masked_fill(empty, -torch.inf)
    return out.to(q.dtype), lse.squeeze(-1)


def plain_attention(
    q: Float[Tensor, "b h q k"],
    k: Float[Tensor, "b g n k"],
    v: Float[Tensor, "b g n k"],
    plan: PyramidPlan,
    key_mask: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, "b h q k"]:
    """Return attention as plain PyTorch computes it in the dtype of the inputs, softmax in float32; differentiable.

    Its error is the measure of a kernel's, which may be at most twice as large.
    """
    group = q.shape[1] // k.shape[1]
    scores, values = [], []
    for pool in POOLS:
        keys, vals = (pooled(x, plan, pool, key_mask=key_mask).repeat_interleave(group, 1) for x in (k, v))
        bias, visible = pool_bias(plan, pool, key_mask=key_mask, device=q.device)
        score = (q @ keys.transpose(-1, -2)).float() * q.shape[-1] ** -0.5 + bias.clamp(min=0).float()[:, None, None]
        scores.append(score.masked_fill(~visible, -torch.inf))
        values.append(vals)
    joined = torch.cat(scores, dim=-1)
    empty = joined.amax(-1, keepdim=True).isinf()
    weight = joined.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    return weight.to(q.dtype) @ torch.cat(values, dim=2)


def pooled(x: Tensor, plan: PyramidPlan, pool: int, *, key_mask: Tensor | None) -> Tensor:
    """Return the keys or values of one pool, padded to whole blocks; keys that do not exist are zero."""
    if pool > 1:
        return unpack(build_pyramid(x, plan.key_block, key_mask=key_mask, tail=plan.tail), pool)
    if key_mask is not None:
        x = torch.where(key_mask[:, None, :, None], x, 0.0)
    return torch.nn.functional.pad(x, (0, 0, 0, plan.padded_keys - plan.num_keys))


def pool_bias(plan: PyramidPlan, pool: int, *, key_mask: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return log counts (1 or b, m) and which query reads which key of `pool`, bool of shape (b, h, q, m)."""
    counts = pool_counts(plan.num_keys, plan.padded_keys, pool, key_mask=key_mask, tail=plan.tail, device=device)
    rows = torch.arange(plan.num_queries, device=device)
    columns = torch.arange(plan.padded_keys // pool, device=device)
    cells = plan.pools[:, :, rows // plan.query_block][..., columns * pool // plan.key_block]
    visible = (cells == pool) & (counts > 0)[:, None, None, :]
    if plan.is_causal:
        limit = plan.pooled_limit if pool > 1 else plan.num_keys
        last = ((columns + 1) * pool).clamp(max=limit) - 1
        visible = visible & (last <= (plan.key_offset + rows)[:, None])
    return counts.double().log(), visible


BACKEND = Backend("reference", "memory for the dense product", reference_attention)
