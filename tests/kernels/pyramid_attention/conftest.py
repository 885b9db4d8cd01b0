"""Random cases, and plain attention to compare with, for the tests of pyramid attention."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hiergen.kernels.pyramid_attention.backends import dense
from hiergen.kernels.pyramid_attention.backends.reference import plain_attention
from hiergen.kernels.pyramid_attention.plan import PyramidPlan


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs of pyramid attention in float64."""

    q: Tensor
    k: Tensor
    v: Tensor
    plan: PyramidPlan
    key_mask: Tensor | None


def random_case(
    *, batch: int = 1, heads: int = 2, key_heads: int = 1, queries: int = 40, keys: int = 90, dim: int = 16,
    query_block: int = 16, key_block: int = 32, pools: tuple[int, ...] = (0, 1, 2, 4, 8), is_causal: bool = False,
    key_offset: int = 0, masked: bool = False, tail: str = "exact", seed: int = 0,
) -> Case:  # fmt: skip
    rng = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(batch, h, n, dim, generator=rng, dtype=torch.float64)
        for h, n in ((heads, queries), (key_heads, keys), (key_heads, keys))
    )
    shape = (batch, heads, -(-queries // query_block), -(-keys // key_block))
    chosen = torch.tensor(pools, dtype=torch.uint8)[torch.randint(0, len(pools), shape, generator=rng)]
    plan = PyramidPlan(chosen, queries, keys, query_block, key_block, is_causal, key_offset, tail)
    mask = torch.rand(batch, keys, generator=rng) > 0.3 if masked else None
    return Case(q, k, v, plan, mask)


def loop_attention(case: Case) -> tuple[Tensor, Tensor]:
    """Return output and log-sum-exp by loops over queries, blocks and groups of keys: the definition, in float64."""
    q, k, v, plan = case.q, case.k, case.v, case.plan
    group = q.shape[1] // k.shape[1]
    out, lse = torch.zeros_like(q), torch.full(q.shape[:3], -math.inf, dtype=q.dtype)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                scores, values = [], []
                for j in range(plan.pools.shape[3]):
                    pool = int(plan.pools[b, h, i // plan.query_block, j])
                    for start in range(j * plan.key_block, (j + 1) * plan.key_block, pool) if pool else ():
                        real = range(start, start + pool)
                        if plan.tail == "exact" or pool == 1:
                            real = range(start, min(start + pool, plan.num_keys))
                        members = [t for t in real if case.key_mask is None or case.key_mask[b, t]]
                        if not members or (plan.is_causal and real[-1] > plan.key_offset + i):
                            continue
                        at = [min(t, plan.num_keys - 1) for t in members]
                        scores.append(k[b, h // group, at].mean(0) @ q[b, h, i] / q.shape[3] ** 0.5 + math.log(len(at)))
                        values.append(v[b, h // group, at].mean(0))
                if scores:
                    row = torch.stack(scores)
                    out[b, h, i] = row.softmax(0) @ torch.stack(values)
                    lse[b, h, i] = row.logsumexp(0)
    return out, lse


@pytest.fixture(name="random_case")
def _random_case() -> Callable[..., Case]:
    return random_case


@pytest.fixture(name="loop_attention")
def _loop_attention() -> Callable[[Case], tuple[Tensor, Tensor]]:
    return loop_attention


@pytest.fixture(name="eager_attention")
def _eager_attention() -> Callable[..., Tensor]:
    return plain_attention


@pytest.fixture(autouse=True)
def _always_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep "auto" from dense attention, which is faster at the sizes of tests."""
    monkeypatch.setattr(dense, "DENSE_FROM", ())
