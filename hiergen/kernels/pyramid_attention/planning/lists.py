"""A plan as the kernels walk it: per row the key blocks to read, sorted by pool."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Int
from torch import Tensor

from hiergen.kernels.pyramid_attention.plan import PlanLists, PyramidPlan, sort_by_pool
from hiergen.kernels.pyramid_attention.pooling import POOLS
from hiergen.kernels.pyramid_attention.triton.availability import runs_triton
from hiergen.kernels.pyramid_attention.triton.operators import plan_lists_op


def with_lists(plan: PyramidPlan) -> PyramidPlan:
    """Return the plan with `lists` filled: by one kernel on a GPU that runs Triton, by stable sorting elsewhere."""
    if plan.lists is not None:
        return plan
    device = plan.pools.device
    if runs_triton(device):
        numbers = (plan.num_keys, plan.query_block, plan.key_block, plan.is_causal, plan.key_offset)
        ids, counts = plan_lists_op(plan.pools, *numbers)
    else:
        ids, counts = sorted_lists(plan)
    work = (counts[..., :4] * (plan.key_block // torch.tensor(POOLS, device=device))).sum(-1)
    order = work.argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return dataclasses.replace(plan, lists=PlanLists(ids, counts, order))


def sorted_lists(plan: PyramidPlan) -> tuple[Int[Tensor, "b h i j"], Int[Tensor, "b h i 8"]]:
    """Return ids and counts of `PlanLists`, in plain PyTorch."""
    ids, counts = sort_by_pool(plan.pools)
    columns = torch.arange(plan.pools.shape[3], device=plan.pools.device)
    whole = columns < plan.unmasked_blocks()[:, None]
    unmasked = torch.stack([((plan.pools == pool) & whole).sum(-1, dtype=torch.int32) for pool in POOLS], dim=-1)
    return ids, torch.cat([counts, unmasked], dim=-1).contiguous()
