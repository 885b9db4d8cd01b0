"""Pyramid attention in plain PyTorch at a cost that follows the plan: each query block gathers the keys that it reads.

For CPUs, and for any device without kernels of its own; differentiable. Query blocks that read about as many keys are computed
together, by one fused call on a CPU; forward and backward hold the gathered keys of one such group at a time.

Letters: `b` batch, `h` query heads, `g` key heads, `q` queries, `n` keys, `k` channels per head, `i` query blocks, `r` rows: a query
block of one head of one sample each, `u` units: an eighth of a key block each, the least that a plan can read of it, `m` keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from hiergen.kernels.dispatch import AttentionRequest, Backend
from hiergen.kernels.pyramid_attention.plan import PyramidPlan
from hiergen.kernels.pyramid_attention.pooling import POOLS, build_pyramid, pool_counts

#: Numbers of gathered keys per group: on a CPU they stay in a core's cache, elsewhere few calls matter more.
_CACHED, _LARGE = 1 << 20, 1 << 25


def gather_attention(
    q: Float[Tensor, "b h q k"],
    k: Float[Tensor, "b g n k"],
    v: Float[Tensor, "b g n k"],
    plan: PyramidPlan,
    *,
    scale: float | None = None,
    key_mask: Bool[Tensor, "b n"] | None = None,
) -> tuple[Float[Tensor, "b h q k"], Float[Tensor, "b h q"]]:
    """Return output and natural log-sum-exp; arguments as `reference_attention`. Products are in the dtype of the inputs."""
    batch, heads, length, channels = q.shape
    scale = channels**-0.5 if scale is None else scale
    num_blocks = plan.pools.shape[2]
    blocks = F.pad(q, (0, 0, 0, num_blocks * plan.query_block - length)).unflatten(2, (num_blocks, -1)).flatten(0, 2)
    keys, values = (_packed(x, plan, key_mask).flatten(0, 2) for x in (k, v))
    walk = _Walk.of(plan, q, k.shape[1], key_mask)
    out, lse = _GatherAttention.apply(blocks, keys, values, walk, scale)
    shape = (batch, heads, num_blocks * plan.query_block)
    return out.reshape(*shape, channels)[:, :, :length], lse.reshape(shape)[:, :, :length]


def _packed(x: Tensor, plan: PyramidPlan, key_mask: Tensor | None) -> Tensor:
    """Return all pools of keys or values by units, pool 1 first, (b, g, u, keys per unit, k); keys that do not exist are zero."""
    pyramid = build_pyramid(x, plan.key_block, key_mask=key_mask, tail=plan.tail)
    if key_mask is not None:
        # `where`, not a product: padding may hold NaN.
        x = torch.where(key_mask[:, None, :, None], x, 0.0)
    packed = torch.cat([F.pad(x, (0, 0, 0, plan.padded_keys - plan.num_keys)), pyramid], dim=2)
    return packed.unflatten(2, (-1, plan.key_block // 8))


@dataclasses.dataclass(frozen=True)
class _Walk:
    """In which groups the rows are computed, and what each reads.

    Attributes:
        units: Units that the rows read, row after row.
        lengths: How many of them each row reads, (r).
        source: The first unit of each row's keys among those of all samples and heads, (r).
        bias: Log of how many keys each packed key stands for, -inf for none, and a unit of -inf for padding, (1 or b, u + 1, keys).
        sample: Which row of `bias` each row of the plan takes, (r).
        last: For a causal plan, the position of each packed key's last member, (u, keys), else None.
        first: Position of each row's first query, (r).
        budget: Numbers of gathered keys that a group may hold.
    """

    units: Tensor
    lengths: Tensor
    source: Tensor
    bias: Tensor
    sample: Tensor
    last: Tensor | None
    first: Tensor
    budget: int

    @classmethod
    def of(cls, plan: PyramidPlan, q: Tensor, key_heads: int, key_mask: Tensor | None) -> _Walk:
        batch, heads, device = q.shape[0], q.shape[1], q.device
        pools = plan.pools.expand(batch, heads, -1, -1).flatten(0, 2)
        num_rows, num_units = plan.pools.shape[2], plan.pools.shape[3] * 15
        counts = [
            pool_counts(plan.num_keys, plan.padded_keys, pool, key_mask=key_mask, tail=plan.tail, device=device)
            for pool in POOLS
        ]
        wide = torch.promote_types(q.dtype, torch.float32)
        bias = torch.cat(counts, dim=1).to(wide).log().unflatten(1, (num_units, -1))
        samples = torch.arange(batch, device=device)
        head = samples[:, None] * key_heads + torch.arange(heads, device=device) // (heads // key_heads)
        return cls(
            units=_units_read(pools),
            lengths=torch.where(pools > 0, 8 // pools.clamp(min=1), 0).sum(-1),
            source=(head * num_units).flatten().repeat_interleave(num_rows),
            bias=F.pad(bias, (0, 0, 0, 1), value=-torch.inf),
            sample=(samples if key_mask is not None else samples * 0).repeat_interleave(heads * num_rows),
            last=_last_members(plan, device) if plan.is_causal else None,
            first=plan.key_offset + plan.query_block * torch.arange(num_rows, device=device).repeat(batch * heads),
            budget=_CACHED if device.type == "cpu" else _LARGE,
        )

    def groups(self, queries: int, channels: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield rows (r), the units of keys that they read (r u), and what is added to their scores (r 1 1|queries m).

        Args:
            queries: Queries per block.
            channels: Channels per head.
        """
        order = self.lengths.argsort(descending=True)
        # Rows that read nothing are the last.
        order = order[: int((self.lengths > 0).sum())]
        starts, lengths = self.lengths.cumsum(0) - self.lengths, self.lengths[order].tolist()
        at, padding = 0, self.bias.shape[1] - 1
        while at < len(order):
            most = lengths[at]
            rows = order[at : at + max(self.budget // (most * self.bias.shape[2] * channels), 1)]
            place = torch.arange(most, device=rows.device)
            is_read = place < self.lengths[rows, None]
            units = self.units[(starts[rows, None] + place).clamp(max=len(self.units) - 1)]
            bias = self.bias[self.sample[rows, None], units.where(is_read, padding)].flatten(1)[:, None, None]
            if self.last is not None:
                position = self.first[rows, None] + torch.arange(queries, device=rows.device)
                hidden = self.last[units].flatten(1)[:, None, None] > position[:, None, :, None]
                bias = bias.masked_fill(hidden, -torch.inf)
            yield rows, units + self.source[rows, None], bias
            at += len(rows)


def _units_read(pools: Tensor) -> Tensor:
    """Return the units that the rows of a plan read, (r, key blocks) of pools: row after row, the blocks of a row ascending."""
    row, block = pools.nonzero().unbind(1)
    pool = pools[row, block].long()
    # Pool p begins behind 16 - 16 / p units per key block, and has 8 / p of them.
    share = 8 // pool
    first = (16 - 2 * share) * pools.shape[1] + block * share
    begins = share.cumsum(0) - share
    inside = torch.arange(int(share.sum()), device=pools.device) - begins.repeat_interleave(share)
    return first.repeat_interleave(share) + inside


def _last_members(plan: PyramidPlan, device: torch.device) -> Tensor:
    """Return the position of each packed key's last member, (u, keys per unit)."""
    last = [
        ((torch.arange(plan.padded_keys // pool, device=device) + 1) * pool).clamp(
            max=plan.pooled_limit if pool > 1 else plan.num_keys
        )
        - 1
        for pool in POOLS
    ]
    return torch.cat(last).unflatten(0, (-1, plan.key_block // 8))


class _GatherAttention(torch.autograd.Function):
    """Attention of query blocks (r, queries, k) over units of keys and values (u, keys, k), one group of rows at a time."""

    @staticmethod
    def forward(
        ctx: Any, blocks: Tensor, keys: Tensor, values: Tensor, walk: _Walk, scale: float
    ) -> tuple[Tensor, Tensor]:
        out = torch.zeros_like(blocks)
        lse = blocks.new_full(blocks.shape[:2], -torch.inf, dtype=torch.promote_types(blocks.dtype, torch.float32))
        for rows, units, bias in walk.groups(*blocks.shape[1:]):
            gathered = _gathered(keys, units), _gathered(values, units)
            attended, sums = _attend(blocks[rows][:, None], *gathered, bias, scale)
            out[rows] = attended.squeeze(1)
            lse[rows] = sums.squeeze(1)
        ctx.save_for_backward(blocks, keys, values, out, lse)
        ctx.walk, ctx.scale = walk, scale
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        blocks, keys, values, out, lse = ctx.saved_tensors
        grads = [torch.zeros_like(x) for x in (blocks, keys, values)]
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        for rows, units, bias in ctx.walk.groups(*blocks.shape[1:]):
            inputs = blocks[rows][:, None], _gathered(keys, units), _gathered(values, units)
            outer = None if grad_lse is None else grad_lse[rows][:, None]
            results = out[rows][:, None], lse[rows][:, None]
            found = _attend_backward(inputs, results, grad_out[rows][:, None], outer, bias, ctx.scale)
            grads[0][rows] = found[0].squeeze(1)
            for total, grad in zip(grads[1:], found[1:], strict=True):
                total.index_add_(0, units.flatten(), grad.squeeze(1).unflatten(1, (units.shape[1], -1)).flatten(0, 1))
        return *grads, None, None


def _gathered(x: Tensor, units: Tensor) -> Tensor:
    """Return the keys of some units, (r, 1, m, k). `index_select` copies whole units, several times faster than indexing does."""
    return x.index_select(0, units.flatten()).view(len(units), 1, -1, x.shape[-1])


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return attention and log-sum-exp, zero and -inf for a query that sees no key; all are (r, 1, …)."""
    if q.device.type != "cpu":
        return _formula(q, k, v, bias, scale)
    mask = bias.expand(-1, -1, q.shape[2], -1)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask, scale=scale)
    return out, lse.masked_fill_((bias == -torch.inf).all(-1), -torch.inf)


def _attend_backward(
    inputs: tuple[Tensor, ...], results: tuple[Tensor, Tensor], grad_out: Tensor, grad_lse: Tensor | None,
    bias: Tensor, scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the gradients of queries, keys and values."""
    if inputs[0].device.type == "cpu" and grad_lse is None:
        out, lse = results
        # The sum of a query that sees no key: any finite number, for its weights are zero.
        lse = lse.masked_fill(lse == -torch.inf, 0.0)
        mask = bias.expand(-1, -1, out.shape[2], -1)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out, *inputs, out, lse, 0.0, False, attn_mask=mask, scale=scale
        )
    with torch.enable_grad():
        q, k, v = leaves = [x.detach().requires_grad_() for x in inputs]
        found = _formula(q, k, v, bias, scale)
        outer = [grad_out, torch.zeros_like(results[1]) if grad_lse is None else grad_lse]
        return torch.autograd.grad(found, leaves, outer)


def _formula(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    wide = bias.dtype
    scores = scale * (q.to(wide) @ k.to(wide).transpose(-1, -2)) + bias
    is_empty = (bias == -torch.inf).all(-1).expand(-1, -1, q.shape[2])
    scores = scores.masked_fill(is_empty[..., None], 0.0)
    out = (scores.softmax(-1) @ v.to(wide)).masked_fill(is_empty[..., None], 0.0)
    return out.to(q.dtype), scores.logsumexp(-1).masked_fill(is_empty, -torch.inf)


def _refuse(request: AttentionRequest, is_named: bool) -> str | None:
    if torch.compiler.is_compiling() and not is_named:
        return "its sizes depend on the plan's values, which splits a compiled graph"
    return None if is_named else request.dense_pays


BACKEND = Backend("gather", "memory for the keys that a group of query blocks reads", gather_attention, _refuse)
