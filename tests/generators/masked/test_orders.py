from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from hiergen.generators.masked.orders import make_stages, mask_ratio, random_orders, unmask_counts

CPU = torch.device("cpu")


def test_stages_are_the_whole_sequence_or_its_levels() -> None:
    assert [dataclasses.astuple(stage) for stage in make_stages([1, 4, 16], "random")] == [(2, 21, 21)]
    assert [dataclasses.astuple(stage) for stage in make_stages([1, 4, 16], "levelwise")] == [
        (0, 1, 1),
        (1, 5, 4),
        (2, 21, 16),
    ]


def test_orders_permute_the_tokens_of_the_stage_and_put_the_given_ones_last() -> None:
    stage = make_stages([1, 4, 16], "levelwise")[2]
    orders = random_orders(64, stage, rng=torch.Generator().manual_seed(0), device=CPU)
    assert orders.sort(dim=1).values.eq(torch.arange(21)).all()
    assert orders[:, 16:].eq(torch.arange(5)).all()
    # Every token comes first in some sample, and samples differ.
    assert len(orders[:, 0].unique()) == 16
    again = random_orders(64, stage, rng=torch.Generator().manual_seed(0), device=CPU)
    assert torch.equal(orders, again)


def test_mask_ratio_follows_the_truncated_normal() -> None:
    def cumulative(ratio: float) -> float:
        """Normal of mean 1 and deviation 0.25, cut to [0.7, 1]."""
        low = math.erf(-0.3 / 0.25 / math.sqrt(2))
        return (math.erf((ratio - 1) / 0.25 / math.sqrt(2)) - low) / -low

    quantiles = [0.0, 0.1, 0.5, 0.9, 1.0]
    ours = [mask_ratio(u, minimum=0.7, std=0.25) for u in quantiles]
    assert [cumulative(ratio) for ratio in ours] == pytest.approx(quantiles, abs=1e-9)
    assert ours[1:4] == pytest.approx([0.745, 0.875, 0.976], abs=2e-3)
    grid = [mask_ratio((i + 0.5) / 400, minimum=0.7, std=0.25) for i in range(400)]
    assert sum(grid) / 400 == pytest.approx(0.867, abs=1e-3)


@pytest.mark.parametrize(("num_tokens", "num_steps"), [(1, 5), (16, 4), (16, 16), (7, 100), (256, 64), (1024, 64)])
def test_every_step_reveals_tokens_and_all_are_revealed_once(num_tokens: int, num_steps: int) -> None:
    counts = unmask_counts(num_tokens, num_steps)
    assert len(counts) == min(num_tokens, num_steps)
    assert counts[0][0] == num_tokens
    assert counts[-1][1] == 0
    assert all(before > after for before, after, _ in counts)
    assert all(one[1] == two[0] for one, two in itertools.pairwise(counts))
    assert [hidden for *_, hidden in counts] == [max(1, after) for _, after, _ in counts]


def test_cosine_schedule_reveals_the_published_numbers_of_tokens() -> None:
    image = [before - after for before, after, _ in unmask_counts(256, 64)]
    assert image[:13] == [1] * 13
    assert image[13] > 1
    assert max(image) == 7
    shape = [before - after for before, after, _ in unmask_counts(1024, 64)]
    assert shape[:6] == [1, 1, 1, 2, 3, 4]
    assert max(shape) == 25
    assert [before - after for before, after, _ in unmask_counts(256, 256)] == [1] * 256
