"""Plans: lists, shares, forced blocks, the picture."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image

from hiergen.kernels.pyramid_attention import draw_plan, full_plan
from hiergen.kernels.pyramid_attention.plan import PyramidPlan
from hiergen.kernels.pyramid_attention.planning.lists import with_lists


def test_lists_by_hand():
    pools = torch.tensor([[8, 1, 0, 2, 1], [0, 0, 0, 0, 0], [2, 2, 4, 4, 1]], dtype=torch.uint8)[None, None]
    plan = PyramidPlan(pools, 40, 70, 16, 16)
    lists = with_lists(plan).lists
    assert lists.ids[0, 0].tolist() == [[1, 4, 3, 0, 2], [0, 1, 2, 3, 4], [4, 0, 1, 2, 3]]
    # 70 keys: the last block is ragged and needs a mask.
    assert lists.counts[0, 0].tolist() == [[2, 1, 0, 1, 1, 1, 0, 1], [0] * 8, [1, 2, 2, 0, 0, 2, 2, 0]]
    # Work 16 * (2 + 1/2 + 1/8) = 42, 0 and 16 * (1 + 1 + 1/2) = 40 pooled keys.
    assert lists.order[0, 0].tolist() == [0, 2, 1]


def test_blocks_before_the_diagonal_need_no_mask():
    plan = full_plan(40, 60, query_block=16, key_block=16, is_causal=True)
    assert plan.key_offset == 20
    # Query blocks begin at positions 20, 36, 52 and see keys up to 35, 51, 59.
    assert plan.visible_blocks().tolist() == [3, 4, 4]
    assert plan.unmasked_blocks().tolist() == [1, 2, 3]
    assert with_lists(plan).lists.counts[0, 0, :, 4].tolist() == [1, 2, 3]


def test_density_and_coverage_by_hand():
    pools = torch.tensor([[8, 1, 0, 2], [4, 4, 0, 0]], dtype=torch.uint8)[None, None]
    plan = PyramidPlan(pools, 32, 64, 16, 16)
    assert float(plan.density) == (1 / 8 + 1 + 1 / 2 + 2 / 4) / 8
    assert float(plan.coverage) == 5 / 8
    causal = full_plan(32, 32, query_block=16, key_block=16, is_causal=True)
    assert float(causal.density) == 1


def test_forced_blocks():
    plan = full_plan(64, 64, pool=0, query_block=16, key_block=32).force_full(keys=[(30, 33)], queries=[(0, 1)])
    assert plan.pools[0, 0].tolist() == [[1, 1]] * 4
    plan = full_plan(64, 64, pool=8, query_block=16, key_block=32).force_full(keys=[(32, 40)], queries=[(63, 64)])
    assert plan.pools[0, 0].tolist() == [[8, 1], [8, 1], [8, 1], [1, 1]]
    with pytest.raises(ValueError, match=r"keys holds the span \(60, 70\)"):
        plan.force_full(keys=[(60, 70)])


def test_the_picture_shows_the_pools(tmp_path):
    plan = PyramidPlan(torch.tensor([[1, 0], [8, 1]], dtype=torch.uint8)[None, None], 32, 32, 16, 16)
    path = draw_plan(plan, tmp_path / "plan.png")
    colors = {color for _, color in Image.open(path).convert("RGB").getcolors(1 << 20)}
    assert {(0x08, 0x30, 0x6B), (0xC6, 0xDB, 0xEF), (0xF4, 0xF4, 0xF4)} <= colors


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"query_block": 24}, "query_block is 24, expected a power of two"),
        ({"key_block": 8}, "key_block is 8, expected a power of two"),
        ({"num_queries": 0}, "the plan is for 0 queries"),
        ({"num_keys": 33}, r"pools has shape \(1, 1, 2, 2\), expected \(batch, heads, 2, 3\)"),
        ({"pools": torch.ones(1, 1, 2, 2, dtype=torch.int32)}, "pools is torch.int32, expected torch.uint8"),
        ({"key_offset": -1}, "key_offset is -1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_plans_are_named(kwargs, message):
    fields = {
        "pools": torch.ones(1, 1, 2, 2, dtype=torch.uint8),
        "num_queries": 32,
        "num_keys": 32,
        "query_block": 16,
        "key_block": 16,
    }
    with pytest.raises(ValueError, match=message):
        PyramidPlan(**(fields | kwargs))


def test_validate_reads_the_values():
    plan = full_plan(32, 32, query_block=16, key_block=16)
    assert plan.validate() is plan
    with pytest.raises(ValueError, match="pools holds 3"):
        dataclasses.replace(plan, pools=torch.full_like(plan.pools, 3)).validate()
