"""Assignment of pools: worked by hand, and against the rules written as plain loops over Python floats."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from hiergen.kernels.pyramid_attention.config import OfficialRules, PSAConfig
from hiergen.kernels.pyramid_attention.planning.assignment import assign_pools


def _row(scores: list[float], config: PSAConfig, visible: int | None = None) -> list[int]:
    seen = None if visible is None else torch.tensor([visible])
    return assign_pools(torch.tensor(scores)[None, None, None], config, visible=seen).flatten().tolist()


def _threshold(*bounds: float, **rules: Any) -> PSAConfig:
    pairs = tuple(zip((1, 2, 4, 8), bounds, strict=True))
    return PSAConfig(mode="threshold", bounds=pairs, rules=OfficialRules(**({"min_full": 0.0} | rules)))


def _loop(scores: list[float], config: PSAConfig) -> list[int]:
    """Return the pools by the published rules, one block after the other (key block over tile at least 1)."""
    n = len(scores)
    order = sorted(range(n), key=lambda j: (-scores[j], j))
    # Python adds float64, as the rules do.
    share = list(itertools.accumulate(scores[j] for j in order))
    share = [end / share[-1] for end in share]
    levels, previous = [0] * n, 0
    entries = sorted(config.bounds, key=lambda e: e[1]) if config.mode == "threshold" else config.bounds
    for pool, bound in entries:
        if config.mode == "threshold":
            count = sum(c <= bound + 1e-6 for c in share)
            end = count + 1 if count else previous
            if pool == 1:
                end = max(end, math.floor(config.rules.min_full * n) + 1)
        else:
            end = min(n, int(n * bound))
        unit = math.ceil(pool / (config.key_block // config.rules.rounding_tile))
        if unit > 1:
            run = math.ceil(max(end - previous, 0) / unit) * unit
            end = min(previous + run, n)
            if end == n:
                end = previous + (n - previous) // unit * unit
        end = max(min(end, n), previous)
        for position in range(previous, end):
            levels[order[position]] = pool
        previous = end
    return levels


def test_threshold_by_hand():
    # Shares .4 .7 .85 .95 1: bound .4 holds one block and the crossing one; .7 holds two and the crossing one, and so on.
    scores = [0.15, 0.4, 0.05, 0.3, 0.1]
    assert _row(scores, _threshold(0.4, 0.7, 0.7, 0.9, rounding_tile=16)) == [2, 1, 0, 1, 8]
    assert _row(scores, _threshold(0.4, 0.7, 0.7, 0.9, rounding_tile=16, crossing="exclude")) == [8, 1, 0, 2, 0]


def test_a_first_block_above_the_bound_leaves_only_the_floor():
    # The first block alone exceeds the bound: the run would be empty, the floor of pool 1 keeps one block.
    scores = [0.9] + [0.1 / 9] * 9
    assert _row(scores, _threshold(0.5, 0.5, 0.5, 0.5, rounding_tile=16))[:3] == [1, 0, 0]
    # Floor: floor(0.25 * 10) + 1 = 3 blocks.
    assert _row(scores, _threshold(0.5, 0.5, 0.5, 0.5, rounding_tile=16, min_full=0.25)) == [1, 1, 1] + [0] * 7


def test_runs_fill_whole_tiles():
    # Key block 32, tile 32: four blocks at pool 4 fill a tile, two at pool 2. Equal scores go by lower id.
    config = PSAConfig(
        bounds=((1, 0.1), (2, 0.2), (4, 0.5), (8, 0.9)), key_block=32, rules=OfficialRules(rounding_tile=32)
    )
    # Ends 1, 2, 5, 9 of 10: runs 1, 1 -> 2, 2 -> 4, 2 -> 8 clipped to the 3 left -> 0.
    assert _row([1.0] * 10, config) == [1, 2, 2, 4, 4, 4, 4, 0, 0, 0]


@pytest.mark.parametrize("key_block", [32, 64, 128])
@pytest.mark.parametrize("mode", ["threshold", "quota"])
def test_equals_the_rules_written_as_a_loop(mode, key_block):
    rng = torch.Generator().manual_seed(key_block)
    for count in (1, 2, 7, 33, 100):
        config = PSAConfig(mode=mode, bounds=((1, 0.3), (2, 0.5), (4, 0.5), (8, 0.9)), key_block=key_block)
        # Rounded, so that there are ties.
        scores = (torch.rand(1, 2, 3, count, generator=rng) ** 4 * 20).round() / 20 + 0.01
        pools = assign_pools(scores, config)
        for head in range(2):
            for row in range(3):
                assert pools[0, head, row].tolist() == _loop(scores[0, head, row].tolist(), config)


def test_only_visible_blocks_count():
    config = PSAConfig(bounds=((1, 0.5), (2, 1.0)), rules=OfficialRules(rounding_tile=16))
    assert _row([1.0, 4.0, 3.0, 2.0, 9.0, 9.0], config, visible=4) == [2, 1, 1, 2, 0, 0]
    assert _row([0.1, 0.6, 0.3, 9.0], _threshold(0.6, 0.6, 0.6, 1.0, rounding_tile=16), visible=3)[3] == 0


def test_energy_keeps_a_dominant_block():
    config = PSAConfig(mode="energy", bounds=((1, 0.7), (2, 0.8), (4, 0.9), (8, 0.9)))
    dominant = [0.01, 0.965, 0.025]
    assert _row(dominant, config) == [0, 1, 0]
    official = PSAConfig(mode="energy", bounds=config.bounds, rules=OfficialRules(energy_rule="end"))
    assert _row(dominant, official) == [0, 0, 0]
    # Shares begin at 0, .52, .77, .92 and end at .52, .77, .92, 1: a block belongs where its share begins, officially where it ends.
    assert _row([0.52, 0.08, 0.15, 0.25], config) == [1, 0, 2, 1]
    assert _row([0.52, 0.08, 0.15, 0.25], official) == [1, 0, 0, 2]
