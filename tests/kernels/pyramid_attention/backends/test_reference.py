"""The reference against loops over single keys, and the properties that define the operator."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from hiergen.kernels.pyramid_attention.backends.reference import reference_attention
from hiergen.kernels.pyramid_attention.plan import PyramidPlan, full_plan

CASES = {
    "ragged": {},
    "many heads, whole blocks": {"heads": 4, "key_heads": 2, "queries": 32, "keys": 64, "batch": 2},
    "small blocks": {"queries": 20, "keys": 41, "key_block": 16},
    "cached prefix": {"queries": 20, "keys": 60, "is_causal": True, "key_offset": 40, "key_block": 16},
    "causal from the start": {"queries": 50, "keys": 50, "is_causal": True, "key_block": 16},
    "padding": {"queries": 20, "keys": 50, "masked": True, "batch": 2, "key_block": 16},
    "causal with padding": {
        "queries": 20,
        "keys": 50,
        "masked": True,
        "is_causal": True,
        "key_offset": 30,
        "key_block": 16,
    },
    "official tail": {"queries": 20, "keys": 41, "tail": "replicate"},
    "official tail, causal": {"queries": 20, "keys": 41, "tail": "replicate", "is_causal": True, "key_offset": 21},
}


@pytest.mark.parametrize("name", CASES)
def test_equals_loops_over_single_keys(name, random_case, loop_attention):
    case = random_case(**CASES[name])
    out, lse = reference_attention(case.q, case.k, case.v, case.plan, key_mask=case.key_mask)
    wanted, wanted_lse = loop_attention(case)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, wanted_lse, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("is_causal", "keys"), [(False, 50), (True, 45)])
def test_pool_one_everywhere_is_dense_attention(is_causal, keys, random_case):
    case = random_case(queries=45, keys=keys, pools=(1,), is_causal=is_causal)
    out, _ = reference_attention(case.q, case.k, case.v, case.plan)
    wanted = F.scaled_dot_product_attention(case.q, case.k, case.v, is_causal=is_causal, enable_gqa=True)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("keys", [64, 50])
def test_any_plan_is_exact_for_keys_that_are_equal_in_groups(keys, random_case):
    # Property (b) of the operator; the exact tail keeps it for ragged lengths.
    case = random_case(keys=keys, pools=(1, 2, 4, 8))
    k, v = (x[:, :, torch.arange(keys) // 8 * 8] for x in (case.k, case.v))
    out, _ = reference_attention(case.q, k, v, case.plan)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(case.q, k, v, enable_gqa=True), rtol=0, atol=1e-12)
    # Property (c): doubling every pool changes nothing.
    doubled = dataclasses.replace(case.plan, pools=(case.plan.pools.long() * 2).clamp(max=8).to(torch.uint8))
    torch.testing.assert_close(reference_attention(case.q, k, v, doubled)[0], out, rtol=0, atol=1e-12)


def test_the_official_tail_overweights_the_last_key(random_case):
    case = random_case(keys=49, pools=(8,))
    replicated = dataclasses.replace(case.plan, tail="replicate")
    exact, official = (reference_attention(case.q, case.k, case.v, p)[0] for p in (case.plan, replicated))
    # 49 keys in blocks of 32: the last key stands alone, and 16 times in the replicated tail.
    alone = reference_attention(case.q, torch.cat([case.k, case.k[:, :, -1:].expand(-1, -1, 15, -1)], 2),
                                torch.cat([case.v, case.v[:, :, -1:].expand(-1, -1, 15, -1)], 2),
                                dataclasses.replace(case.plan, num_keys=64))[0]  # fmt: skip
    torch.testing.assert_close(official, alone, rtol=0, atol=1e-12)
    assert (exact - official).abs().max() > 0.01


def test_rows_without_keys_are_zero_and_have_zero_gradients(random_case):
    case = random_case(pools=(0,))
    q = case.q.requires_grad_()
    out, lse = reference_attention(q, case.k, case.v, case.plan)
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(lse, torch.full_like(lse, -torch.inf))
    out.sum().backward()
    assert torch.equal(q.grad, torch.zeros_like(q))


def test_a_causal_query_is_independent_of_later_keys(random_case):
    case = random_case(queries=40, keys=60, is_causal=True, key_offset=20, pools=(1, 2, 4, 8))
    out, _ = reference_attention(case.q, case.k, case.v, case.plan)
    for query in (0, 17, 30):
        position = 20 + query
        k, v = case.k.clone(), case.v.clone()
        k[:, :, position + 1 :], v[:, :, position + 1 :] = 1e3, -1e3
        changed, _ = reference_attention(case.q, k, v, case.plan)
        assert torch.equal(changed[:, :, query], out[:, :, query])


def test_chunks_with_an_offset_equal_one_causal_pass(random_case):
    case = random_case(queries=64, keys=64, is_causal=True, pools=(1, 2, 4), query_block=16, key_block=16)
    whole, _ = reference_attention(case.q, case.k, case.v, case.plan)
    part = PyramidPlan(case.plan.pools[:, :, 2:, :], 32, 64, 16, 16, True, 32)
    chunk, _ = reference_attention(case.q[:, :, 32:], case.k, case.v, part)
    torch.testing.assert_close(chunk, whole[:, :, 32:], rtol=0, atol=1e-12)


def test_masked_keys_may_hold_nan(random_case):
    case = random_case(masked=True)
    wanted, _ = reference_attention(case.q, case.k, case.v, case.plan, key_mask=case.key_mask)
    k, v = (x.masked_fill(~case.key_mask[:, None, :, None], torch.nan) for x in (case.k, case.v))
    assert torch.equal(reference_attention(case.q, k, v, case.plan, key_mask=case.key_mask)[0], wanted)


def test_tokens_read_in_full_keep_their_single_keys(random_case):
    # A needle among the first keys: read in full it decides the output; averaged it is lost.
    case = random_case(queries=16, keys=64, pools=(8,), heads=1)
    k = case.k.clone() * 0.01
    k[:, :, 3] = 40 * case.q[:, :, :1].mean(2) / case.q[:, :, :1].norm()
    needle = reference_attention(
        case.q[:, :, :1], k, case.v, PyramidPlan(case.plan.pools, 1, 64, 16, 32).force_full(keys=[(0, 5)])
    )[0]
    blurred = reference_attention(case.q[:, :, :1], k, case.v, PyramidPlan(case.plan.pools, 1, 64, 16, 32))[0]
    dense = reference_attention(case.q[:, :, :1], k, case.v, full_plan(1, 64, query_block=16, key_block=32))[0]
    assert (needle - dense).abs().max() < 0.1 * (blurred - dense).abs().max()


def test_gradients_by_finite_differences(random_case):
    case = random_case(heads=2, queries=5, keys=19, dim=3, query_block=16, key_block=16, pools=(1, 2, 8), seed=2)
    inputs = tuple(x.requires_grad_() for x in (case.q, case.k, case.v))
    assert torch.autograd.gradcheck(lambda *x: reference_attention(*x, case.plan), inputs)
