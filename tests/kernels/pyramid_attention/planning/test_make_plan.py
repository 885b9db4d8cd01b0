"""From scores to plans: the rules that override the assignment."""

from __future__ import annotations

import dataclasses

import torch

from hiergen.kernels.pyramid_attention import OfficialRules, PSAConfig, make_plan, plan_from_scores


def test_rules_override_the_assignment():
    config = PSAConfig(
        bounds=((8, 1.0),),
        query_block=16,
        key_block=16,
        sink_blocks=1,
        text_tokens=20,
        text_at="end",
        rules=OfficialRules(rounding_tile=16),
    )
    # Rounding to whole tiles leaves some blocks out; only the overridden ones matter here.
    scores = torch.rand(1, 1, 6, 6)
    k = torch.randn(1, 1, 96, 8)
    pools = plan_from_scores(scores, 96, k, config, is_causal=True).pools[0, 0]
    assert (pools.triu(1) == 0).all()
    assert (pools.diagonal() == 1).all()
    assert (pools[:, 0] == 1).all()
    # The last 20 tokens lie in the last two blocks.
    assert (pools[4:] == torch.ones(2, 6).tril(4)).all()
    assert ((pools[2:4, 1] == 0) | (pools[2:4, 1] == 8)).all()


def test_the_similarity_cap_makes_pools_finer_and_revives_nothing():
    config = PSAConfig(
        bounds=((8, 0.5),),
        query_block=16,
        key_block=16,
        similarity=(-1.0, -1.0, 1.0),
        rules=OfficialRules(rounding_tile=2),
    )
    scores = torch.rand(1, 2, 3, 4)
    k = torch.ones(1, 1, 64, 8)
    free = plan_from_scores(scores, 48, k, dataclasses.replace(config, similarity=None)).pools
    capped = plan_from_scores(scores, 48, k, config).pools
    assert torch.equal(capped, torch.where(free == 8, 4, free))


def test_a_plan_costs_no_gradient_and_repeats():
    q, k = torch.randn(1, 2, 64, 8, requires_grad=True), torch.randn(1, 1, 64, 8)
    config = PSAConfig(query_block=16, key_block=16, rules=OfficialRules(rounding_tile=16))
    first, second = make_plan(q, k, config), make_plan(q, k, config)
    assert torch.equal(first.pools, second.pools)
    assert torch.equal(first.lists.ids, second.lists.ids)
    assert first.tail == "exact"


def test_a_quota_of_no_whole_block_reads_the_best_one() -> None:
    scores = torch.tensor([[[[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]]]])
    keys = torch.zeros(1, 1, 96, 8)
    config = PSAConfig(bounds=((1, 0.1), (8, 0.3)), query_block=32, key_block=32)
    assert plan_from_scores(scores, 64, keys, config).pools.tolist() == [[[[0, 1, 0], [1, 0, 0]]]]
    as_official = dataclasses.replace(config, rules=OfficialRules(empty_rows="nothing"))
    assert not plan_from_scores(scores, 64, keys, as_official).pools.any()
    # A row that reads something is left alone.
    coarse = PSAConfig(bounds=((1, 0.1), (8, 0.4)), query_block=32, key_block=32, rules=OfficialRules(rounding_tile=4))
    assert plan_from_scores(scores, 64, keys, coarse).pools.tolist() == [[[[0, 8, 0], [8, 0, 0]]]]
