"""Farthest-point sampling against a greedy loop and fpsample."""

from __future__ import annotations

import fpsample
import numpy as np
import pytest
import torch

from hiergen.nn.farthest_points import farthest_points


def greedy(points: np.ndarray, count: int) -> list[int]:
    chosen = [0]
    while len(chosen) < count:
        distances = [min(float(((p - points[c]) ** 2).sum()) for c in chosen) for p in points]
        chosen.append(int(np.argmax(distances)))
    return chosen


def test_equals_the_greedy_loop_and_fpsample() -> None:
    clouds = torch.randn(3, 60, 3, dtype=torch.float64)
    found = farthest_points(clouds, 20)
    for cloud, indices in zip(clouds.numpy(), found.tolist(), strict=True):
        assert indices == greedy(cloud, 20)
    large = torch.rand(1, 2000, 3)
    expected = fpsample.fps_sampling(large[0].numpy(), 300, start_idx=0)
    assert farthest_points(large, 300)[0].tolist() == expected.tolist()


def test_ties_take_the_lowest_index_and_the_first_m_are_the_answer_for_m() -> None:
    square = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]]])
    assert farthest_points(square, 5).tolist() == [[0, 3, 1, 2, 0]]
    clouds = torch.rand(2, 50, 3)
    order = farthest_points(clouds, 30)
    assert torch.equal(order[:, :7], farthest_points(clouds, 7))
    # A cloud in this order is its own farthest-point order.
    ordered = clouds.gather(1, order[..., None].expand(-1, -1, 3))
    assert torch.equal(farthest_points(ordered, 30), torch.arange(30).expand(2, 30))


def test_a_random_start_follows_the_generator_and_half_precision_is_measured_in_float32() -> None:
    clouds = torch.rand(4, 100, 3)
    first, second = (farthest_points(clouds, 10, rng=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert len(set(first[:, 0].tolist())) > 1
    half = clouds.bfloat16()
    assert torch.equal(farthest_points(half, 40), farthest_points(half.float(), 40))


@pytest.mark.parametrize("count", [0, 11])
def test_impossible_counts_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"count is {count}, expected 1 to 10"):
        farthest_points(torch.rand(1, 10, 3), count)
