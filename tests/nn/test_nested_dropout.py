from __future__ import annotations

import math

import pytest
import torch

from hiergen.nn.nested_dropout import draw_nested_lengths, draw_prefix_lengths, prefix_mask, prefix_probabilities

LENGTHS = (4, 8, 16, 32, 64, 128)


def test_published_probabilities() -> None:
    wanted = [1 / 155, 2 / 155, 4 / 155, 8 / 155, 16 / 155, 0.8]
    assert prefix_probabilities(LENGTHS, 0.2) == pytest.approx(wanted)


@pytest.mark.parametrize("drop_prob", [0.2, 0.9])
def test_frequencies_follow_the_probabilities(drop_prob: float) -> None:
    draws = 20_000
    lengths = draw_prefix_lengths(draws, LENGTHS, drop_prob, rng=torch.Generator().manual_seed(3))
    assert lengths.dtype == torch.int64
    counts = [int((lengths == length).sum()) for length in LENGTHS]
    assert sum(counts) == draws
    expected = [draws * p for p in prefix_probabilities(LENGTHS, drop_prob)]
    chi_square = sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True))
    # Five degrees of freedom: 20.5 is passed by chance once in a thousand seeds, and the seed is fixed.
    assert chi_square < 20.5


def test_extremes() -> None:
    assert draw_prefix_lengths(50, LENGTHS, 0.0).unique().tolist() == [128]
    assert 128 not in draw_prefix_lengths(2000, LENGTHS, 1.0)
    assert draw_prefix_lengths(5, (7,), 0.5).tolist() == [7] * 5
    assert math.fsum(prefix_probabilities(LENGTHS, 1.0)) == pytest.approx(1.0)


def test_same_seed_same_lengths() -> None:
    first, second = (draw_prefix_lengths(64, LENGTHS, 0.9, rng=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert len(first.unique()) > 2


def test_mask_is_true_on_each_prefix() -> None:
    mask = prefix_mask(torch.tensor([1, 4, 2]), 4)
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize("lengths", [(), (0, 1), (4, 4), (8, 4)])
def test_lengths_that_do_not_ascend_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected ascending positive token counts"):
        prefix_probabilities(lengths, 0.2)


@pytest.mark.parametrize("drop_prob", [-0.1, 1.1])
def test_drop_prob_must_be_a_probability(drop_prob: float) -> None:
    with pytest.raises(ValueError, match=r"drop_prob is .*, expected 0 to 1"):
        prefix_probabilities(LENGTHS, drop_prob)


@pytest.mark.parametrize(
    ("distribution", "wanted"),
    [
        ("uniform", dict.fromkeys(range(1, 9), 1 / 8)),
        ("powers", dict.fromkeys((1, 2, 4, 8), 1 / 4)),
        ("uniform_powers", {1: 1 / 8, 2: 1 / 8, 4: 1 / 4, 8: 1 / 2}),
    ],
)
def test_nested_lengths_follow_their_distribution(distribution, wanted) -> None:
    drawn = draw_nested_lengths(20_000, 8, distribution, rng=torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.int64
    assert set(drawn.tolist()) == set(wanted)
    for length, share in wanted.items():
        assert float((drawn == length).float().mean()) == pytest.approx(share, abs=0.012)
    assert draw_nested_lengths(50, 1, distribution, rng=torch.Generator().manual_seed(0)).unique().tolist() == [1]
