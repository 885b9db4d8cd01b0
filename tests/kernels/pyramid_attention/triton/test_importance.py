"""Planning through the kernels, in the interpreter, against planning in plain PyTorch."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hiergen.kernels.pyramid_attention import PSAConfig, make_plan, psa_preset, pyramid_sparse_attention
from hiergen.kernels.pyramid_attention.config import OfficialRules
from hiergen.kernels.pyramid_attention.planning.assignment import assign_by_kernel, assign_by_sorting
from hiergen.kernels.pyramid_attention.planning.importance import ImportanceRequest, fused_scores, pooled_scores
from hiergen.kernels.pyramid_attention.triton import operators

pytest.importorskip("triton")

CASES = [
    {"queries": 40, "keys": 90, "query_block": 16, "key_block": 32},
    {"queries": 33, "keys": 100, "query_block": 16, "key_block": 16, "is_causal": True, "key_offset": 67},
    {"queries": 70, "keys": 70, "query_block": 64, "key_block": 64, "is_causal": True},
    {"queries": 20, "keys": 300, "query_block": 32, "key_block": 128, "dim": 24, "masked": True},
    {"queries": 130, "keys": 520, "query_block": 128, "key_block": 256, "dtype": torch.float16},
    {"queries": 64, "keys": 1030, "query_block": 16, "key_block": 1024},
]  # fmt: skip


def inputs(case: dict, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, ImportanceRequest]:
    rng = torch.Generator().manual_seed(seed)
    dim, dtype = case.get("dim", 16), case.get("dtype", torch.float32)
    q = torch.randn(2, case["queries"], 4, dim, generator=rng).transpose(1, 2).to(dtype)
    k = torch.randn(2, 2, case["keys"], dim, generator=rng).to(dtype)
    mask = torch.rand(2, case["keys"], generator=rng) > 0.3 if case.get("masked") else None
    numbers = {name: case[name] for name in ("query_block", "key_block", "is_causal", "key_offset") if name in case}
    return q, k, ImportanceRequest(key_mask=mask, **numbers)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_importance_is_the_plain_one(case):
    q, k, request = inputs(case)
    wanted = pooled_scores(q.double(), k.double(), request, query_pool=8, key_pool=8)
    scores = fused_scores(q, k, request)
    assert scores.shape == wanted.shape
    assert not scores.isnan().any()
    # Half precision rounds the pooled keys and queries themselves.
    tolerance = 2e-6 if q.dtype == torch.float32 else 2e-3
    torch.testing.assert_close(scores.double(), wanted, rtol=tolerance, atol=tolerance)


def test_importance_reads_no_more_than_it_should_and_writes_all(monkeypatch):
    q, k, request = inputs(CASES[0])
    wanted = fused_scores(q, k, request)
    surrounded = torch.full((2, 4, 60, 40), torch.nan)
    surrounded[:, :, 8:48, 8:24] = q
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **kw: empty(*size, **kw).fill_(torch.nan))
    assert torch.equal(fused_scores(surrounded[:, :, 8:48, 8:24], k, request), wanted)


def test_a_query_block_that_sees_no_key_pays_nothing():
    q, k, request = inputs({"queries": 32, "keys": 40, "query_block": 16, "key_block": 16})
    request = dataclasses.replace(request, key_mask=torch.zeros(2, 40, dtype=torch.bool))
    assert torch.equal(fused_scores(q, k, request), torch.zeros(2, 4, 2, 3))


def test_large_scores_do_not_overflow():
    q, k, request = inputs(CASES[0])
    wanted = pooled_scores(200 * q.double(), k.double(), request, query_pool=8, key_pool=8)
    torch.testing.assert_close(fused_scores(200 * q, k, request).double(), wanted, rtol=1e-4, atol=1e-4)


def configs() -> dict[str, PSAConfig]:
    pairs = ((1, 0.3), (2, 0.5), (4, 0.5), (8, 0.9))
    threshold = PSAConfig(mode="threshold", bounds=pairs)
    return {
        "quota": PSAConfig(bounds=pairs),
        "quota, small blocks": PSAConfig(bounds=pairs, key_block=32),
        "quota out of order": PSAConfig(bounds=((8, 0.4), (1, 0.6))),
        "threshold": threshold,
        "threshold, small blocks": dataclasses.replace(threshold, key_block=32),
        "threshold, crossing excluded": dataclasses.replace(
            threshold, rules=OfficialRules(crossing="exclude", min_full=0.2)
        ),
        "energy": PSAConfig(mode="energy", bounds=pairs),
        "energy, official": PSAConfig(mode="energy", bounds=pairs, rules=OfficialRules(energy_rule="end")),
        "everything in full": PSAConfig(bounds=((1, 1.0),)),
        **{name: psa_preset(name) for name in ("wan2.1-14b-balanced", "wan2.2-a14b-balanced", "qwen2.5-vl")},
    }


@pytest.mark.parametrize("name", configs())
def test_pools_are_the_sorted_ones_bit_for_bit(name):
    # Few rows: the interpreter takes a tenth of a second to sort one.
    config, rng = configs()[name], torch.Generator().manual_seed(1)
    for count in (7, 40) if config.mode == "threshold" else (7,):
        # Rounded, so that there are ties and zeros; one row far from uniform, one empty, one that sees a part.
        scores = ((torch.rand(1, 1, 4, count, generator=rng) ** 4) * 20).round() / 20
        scores[0, 0, 0] = torch.linspace(1, 20, count).exp()
        scores[0, 0, 1] = 0
        visible = torch.tensor([count, count, count, count // 2])
        assert torch.equal(assign_by_kernel(scores, config, visible), assign_by_sorting(scores, config, visible))


def test_one_block_is_read_in_full():
    config = configs()["threshold"]
    assert assign_by_kernel(torch.ones(1, 1, 1, 1), config, torch.tensor([1])).item() == 1


def test_planning_and_attention_share_one_pyramid(monkeypatch):
    calls = []
    build = operators.key_pyramid

    def counted(*args, **kwargs):
        calls.append(kwargs)
        return build(*args, **kwargs)

    for module in ("attention", "backends.triton"):
        monkeypatch.setattr(f"hiergen.kernels.pyramid_attention.{module}.key_pyramid", counted)
    config = PSAConfig(query_block=16, key_block=16, similarity=(0.1, 0.1, 0.1), rules=OfficialRules(rounding_tile=2))
    q, k, v = (torch.randn(1, 2, 70, 16).cumsum(2) / 8 for _ in range(3))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    ours = pyramid_sparse_attention(*inputs, config=config, backend="triton")
    assert calls == [{"tail": "exact", "with_cosines": True}]
    plan = make_plan(q, k, config)
    assert len(plan.pools.unique()) > 1
    wanted = pyramid_sparse_attention(*inputs, plan=plan, backend="reference")
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(ours)
    for x, y in zip(*(torch.autograd.grad((out * weight).sum(), inputs) for out in (ours, wanted)), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
