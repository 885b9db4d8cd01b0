"""Whether the kernels of pyramid attention compute what the reference says, on the device at hand.

The rule: a kernel's error is at most twice the error that plain PyTorch makes in the same number format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hiergen.kernels.pyramid_attention.backends.reference import plain_attention, reference_attention
from hiergen.kernels.pyramid_attention.backends.triton import triton_attention
from hiergen.kernels.pyramid_attention.config import PSAConfig
from hiergen.kernels.pyramid_attention.plan import PyramidPlan
from hiergen.kernels.pyramid_attention.planning.assignment import assign_by_kernel, assign_by_sorting
from hiergen.kernels.pyramid_attention.planning.importance import ImportanceRequest, fused_scores, pooled_scores
from hiergen.kernels.pyramid_attention.planning.lists import sorted_lists
from hiergen.kernels.pyramid_attention.pooling import POOLS, build_pyramid
from hiergen.kernels.pyramid_attention.triton.operators import key_pyramid, plan_lists_op


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs of pyramid attention with a random plan.

    Attributes:
        queries: Number of queries.
        keys: Number of keys.
        heads: Number of query heads.
        key_heads: Number of key heads.
        dim: Channels per head.
        query_block: Queries per block.
        key_block: Keys per block.
        is_causal: Whether the last query sees all keys and each earlier one fewer.
        masked: Whether a third of the keys are padding.
        size: Standard deviation of queries and keys.
    """

    queries: int
    keys: int
    heads: int = 2
    key_heads: int = 2
    dim: int = 64
    query_block: int = 128
    key_block: int = 64
    is_causal: bool = False
    masked: bool = False
    size: float = 1.0


CASES: Mapping[str, Case] = {
    "small": Case(40, 70, dim=16, query_block=16, key_block=32),
    "small, causal": Case(40, 70, key_heads=1, dim=16, query_block=16, key_block=32, is_causal=True),
    "ragged, 64 channels": Case(200, 333),
    "ragged, 128 channels": Case(900, 1111, dim=128, key_block=128),
    "causal": Case(150, 200, is_causal=True),
    "padding": Case(200, 333, dim=128, masked=True),
    "shared key heads, small key blocks": Case(500, 777, heads=4, key_heads=2, key_block=32),
    "odd channels": Case(200, 333, dim=80),
    "long": Case(2048, 8192, heads=1, key_heads=1, dim=128, key_block=128),
    "large scores": Case(200, 333, size=12.0),
}


def check_attention(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return the largest errors of output and gradients, relative to the largest value, of the kernels and of plain PyTorch.

    Returns:
        For "out", "dq", "dk", "dv" the entries "kernel", "plain" and "holds", whether the rule holds; "lse_error", absolute; and "finite".
    """
    rng = torch.Generator().manual_seed(0)
    shapes = ((case.heads, case.queries), (case.key_heads, case.keys), (case.key_heads, case.keys))
    drawn = [torch.randn(1, h, n, case.dim, generator=rng, dtype=torch.float64) for h, n in shapes]
    inputs = [x.mul(size).to(device, dtype) for x, size in zip(drawn, (case.size, case.size, 1.0), strict=True)]
    mask = (torch.rand(1, case.keys, generator=rng) > 1 / 3).to(device) if case.masked else None
    plan, gradient = _random_plan(case, rng, device), torch.randn(*inputs[0].shape, generator=rng).to(device, dtype)

    def run(attend: Callable[..., Tensor], number: torch.dtype) -> list[Tensor]:
        leaves = [x.detach().to(number).requires_grad_() for x in inputs]
        out = attend(*leaves)
        return [out.detach(), *torch.autograd.grad((out * gradient.to(number)).sum(), leaves)]

    wanted = run(lambda q, k, v: reference_attention(q, k, v, plan, key_mask=mask)[0], torch.float64)
    plain = run(lambda q, k, v: plain_attention(q, k, v, plan, mask), dtype)
    ours = run(lambda q, k, v: triton_attention(q, k, v, plan, key_mask=mask)[0], dtype)
    found: dict[str, Any] = {}
    for name, x, y, exact in zip(("out", "dq", "dk", "dv"), ours, plain, wanted, strict=True):
        found[name] = _compared(x, y, exact)
    q, k, v = inputs
    lse = triton_attention(q, k, v, plan, key_mask=mask)[1].double()
    exact_lse = reference_attention(q.double(), k.double(), v.double(), plan, key_mask=mask)[1]
    seen = exact_lse.isfinite()
    found["lse_error"] = _number((lse[seen] - exact_lse[seen]).abs().amax())
    found["finite"] = all(bool(x.isfinite().all()) for x in ours)
    return found


def check_preparation(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return how far the kernels that plan are from planning in plain PyTorch: errors of scores and means, shares of equal pools and lists."""
    rng = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, 2, n, case.dim, generator=rng).to(device, dtype) for n in (case.queries, *[case.keys] * 2)
    )
    request = ImportanceRequest(query_block=case.query_block, key_block=case.key_block)
    wanted = pooled_scores(q.double(), k.double(), request, query_pool=8, key_pool=8)
    scores = fused_scores(q, k, request)
    config = PSAConfig(query_block=case.query_block, key_block=case.key_block)
    visible = torch.full((scores.shape[2],), scores.shape[-1], device=device)
    by_kernel, by_sorting = (assign(scores, config, visible) for assign in (assign_by_kernel, assign_by_sorting))
    plan = _random_plan(case, rng, device)
    lists = plan_lists_op(plan.pools, case.keys, case.query_block, case.key_block, False, 0)
    pyramid = key_pyramid(k, v, case.key_block, tail="exact").pooled.double()
    means = torch.stack([build_pyramid(x.double(), case.key_block) for x in (k, v)])
    return {
        "scores_error": _number((scores.double() - wanted).abs().amax() / wanted.amax()),
        "equal_pools": _number((by_kernel == by_sorting).double().mean()),
        "equal_lists": all(torch.equal(x, y) for x, y in zip(lists, sorted_lists(plan), strict=True)),
        "pyramid_error": _number((pyramid - means).abs().amax() / means.abs().amax()),
    }


def _random_plan(case: Case, rng: torch.Generator, device: torch.device) -> PyramidPlan:
    shape = (1, case.heads, -(-case.queries // case.query_block), -(-case.keys // case.key_block))
    choices = torch.tensor((0, *POOLS), dtype=torch.uint8)
    pools = choices[torch.randint(len(choices), shape, generator=rng)].to(device)
    offset = case.keys - case.queries if case.is_causal else 0
    return PyramidPlan(pools, case.queries, case.keys, case.query_block, case.key_block, case.is_causal, offset)


def _compared(ours: Tensor, plain: Tensor, wanted: Tensor) -> dict[str, Any]:
    scale = wanted.abs().amax()
    kernel, eager = (_number((x.double() - wanted).abs().amax() / scale) for x in (ours, plain))
    # The floor is a few roundings in float32, the precision of the stored log-sum-exp, whatever the format.
    holds = kernel is not None and kernel <= 2 * (eager or 0.0) + 4 * torch.finfo(torch.float32).eps
    return {"kernel": kernel, "plain": eager, "holds": holds}


def _number(value: Tensor) -> float | None:
    """Return a value, or None where it is not finite, which JSON does not have."""
    return float(value) if bool(value.isfinite()) else None
