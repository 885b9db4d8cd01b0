"""Attention over gathered keys against loops over the definition, and its gradients against the reference's."""

from __future__ import annotations

import pytest
import torch

from hiergen.kernels.pyramid_attention.backends import gather
from hiergen.kernels.pyramid_attention.backends.gather import gather_attention
from hiergen.kernels.pyramid_attention.backends.reference import reference_attention

CASES = [
    {},
    {"batch": 2, "heads": 4, "key_heads": 2, "masked": True},
    {"key_block": 64, "keys": 100, "query_block": 32},
    {"tail": "replicate", "keys": 70},
    {"is_causal": True, "key_offset": 50},
    {"is_causal": True, "queries": 90, "key_offset": 0},
    {"pools": (0, 4)},
    {"pools": (0,)},
]


@pytest.mark.parametrize("settings", CASES)
def test_gathering_is_the_definition(settings, random_case, loop_attention):
    case = random_case(**settings)
    out, lse = gather_attention(case.q, case.k, case.v, case.plan, key_mask=case.key_mask)
    wanted, wanted_lse = loop_attention(case)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(lse, wanted_lse)


@pytest.mark.parametrize("settings", CASES[:-1])
def test_gradients_are_those_of_the_reference(settings, random_case):
    case = random_case(**settings)
    weights = torch.randn_like(case.q), torch.randn(case.q.shape[:3], dtype=torch.float64)
    found = []
    for attend in (gather_attention, reference_attention):
        inputs = [x.clone().requires_grad_() for x in (case.q, case.k, case.v)]
        out, lse = attend(*inputs, case.plan, key_mask=case.key_mask, scale=0.3)
        loss = (out * weights[0]).sum() + (torch.where(lse.isinf(), 0.0, lse) * weights[1]).sum()
        found.append(torch.autograd.grad(loss, inputs))
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted)


def test_a_plan_for_all_heads_serves_each_and_masked_nan_stays_out(random_case):
    case = random_case(batch=2, heads=2, key_heads=2, masked=True)
    plan = type(case.plan)(case.plan.pools[:1, :1], 40, 90, 16, 32)
    poisoned = [torch.where(case.key_mask[:, None, :, None], x, torch.nan) for x in (case.k, case.v)]
    out, _ = gather_attention(case.q, *poisoned, plan, key_mask=case.key_mask)
    wanted, _ = reference_attention(case.q, case.k, case.v, plan, key_mask=case.key_mask)
    torch.testing.assert_close(out, wanted)
    half = [x.bfloat16() for x in (case.q, case.k, case.v)]
    rough, lse = gather_attention(*half, plan, key_mask=case.key_mask)
    assert (rough.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(rough.double(), wanted, rtol=0, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_many_small_groups_give_what_one_large_group_gives(dtype, random_case, monkeypatch):
    case = random_case(batch=2, heads=4, key_heads=2, queries=90, keys=200, masked=True)
    inputs = [x.to(dtype).requires_grad_() for x in (case.q, case.k, case.v)]
    found = []
    for budget in (1, 1 << 30):
        monkeypatch.setattr(gather, "_CACHED", budget)
        out, lse = gather_attention(*inputs, case.plan, key_mask=case.key_mask)
        found.append([out, lse, *torch.autograd.grad(out.float().square().sum(), inputs)])
    # A longer padded row is summed in other portions: no more than rounding may differ.
    tolerance = 8 * torch.finfo(dtype).eps
    for small, large in zip(*found, strict=True):
        torch.testing.assert_close(small, large, rtol=tolerance, atol=tolerance)


def test_the_plain_formula_that_other_devices_take_is_the_same(random_case, monkeypatch):
    case = random_case(is_causal=True, key_offset=10, pools=(0, 1, 8))
    wanted, wanted_lse = gather_attention(case.q, case.k, case.v, case.plan)
    monkeypatch.setattr(gather, "_attend", gather._formula)
    out, lse = gather_attention(case.q, case.k, case.v, case.plan)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(lse, wanted_lse)
