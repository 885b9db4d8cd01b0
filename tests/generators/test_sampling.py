from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hiergen.generators.sampling import DrawSettings, draw_ids, keep_top_k, keep_top_p
from hiergen.kernels.dispatch import plain_on_cpu


def kept(logits: torch.Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


def test_top_k_by_hand() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 1.0, 5.0, 1.0]])
    assert kept(keep_top_k(logits, 1)) == [[1], [0, 2]]
    assert kept(keep_top_k(logits, 2)) == [[1, 3], [0, 2]]
    # Ties with the third largest stay.
    assert kept(keep_top_k(logits, 3)) == [[1, 2, 3], [0, 1, 2, 3]]
    assert torch.equal(keep_top_k(logits, 9), logits)


def test_top_p_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.97, 0.01, 0.01, 0.01]]).log()
    # Sums before each id, most probable first: 0, 0.5, 0.75, 0.9.
    assert kept(keep_top_p(logits, 0.0)) == [[1], [0]]
    assert kept(keep_top_p(logits, 0.45)) == [[1], [0]]
    assert kept(keep_top_p(logits, 0.55)) == [[1, 3], [0]]
    assert kept(keep_top_p(logits, 0.8)) == [[1, 2, 3], [0]]
    assert kept(keep_top_p(logits, 0.95)) == [[0, 1, 2, 3], [0]]


@pytest.mark.parametrize("spread", [0.5, 3.0, 12.0])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.95, 0.9999])
def test_top_p_of_the_largest_keeps_what_sorting_all_keeps(p, spread) -> None:
    logits = spread * torch.randn(3, 7, 1024, generator=torch.Generator().manual_seed(0))
    # Half precision has many ties, and top-k leaves most at minus infinity.
    for row in (logits, logits.bfloat16().float(), keep_top_k(logits, 5), torch.zeros_like(logits)):
        with plain_on_cpu():
            wanted = keep_top_p(row, p)
        assert torch.equal(keep_top_p(row, p), wanted)


def test_draws_equal_multinomial_of_the_same_seed() -> None:
    logits = 3 * torch.randn(4, 6, 50)
    settings = DrawSettings(temperature=0.7, top_k=20, top_p=0.9)
    ours = draw_ids(logits, settings, rng=torch.Generator().manual_seed(5))
    probabilities = keep_top_p(keep_top_k(logits / 0.7, 20), 0.9).softmax(-1)
    wanted = torch.multinomial(probabilities.flatten(0, 1), 1, generator=torch.Generator().manual_seed(5))
    assert torch.equal(ours, wanted.view(4, 6))
    # Without an rng the global one is used, as by multinomial.
    torch.manual_seed(9)
    ours = draw_ids(logits, settings)
    torch.manual_seed(9)
    assert torch.equal(ours, torch.multinomial(probabilities.flatten(0, 1), 1).view(4, 6))


def test_draws_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.6, 0.3, 0.1, 0.0])
    ids = draw_ids(probabilities.log().expand(20000, 4), DrawSettings(), rng=torch.Generator().manual_seed(0))
    shares = ids.bincount(minlength=4) / len(ids)
    # Four standard deviations of a share of 20000 draws are below 0.014.
    torch.testing.assert_close(shares, probabilities, rtol=0, atol=0.014)
    assert shares[3] == 0


@pytest.mark.parametrize("values", [{"greedy": True}, {"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.0}])
def test_ways_to_be_greedy(values: dict[str, Any]) -> None:
    logits = torch.randn(3, 5, 40, dtype=torch.float64)
    assert torch.equal(draw_ids(logits, DrawSettings(**values)), logits.argmax(-1))


def test_greedy_draws_nothing() -> None:
    rng = torch.Generator().manual_seed(3)
    before = rng.get_state()
    draw_ids(torch.randn(2, 5), DrawSettings(greedy=True), rng=rng)
    assert torch.equal(rng.get_state(), before)


def test_low_precision_logits_are_drawn_in_float32() -> None:
    # In bfloat16 the sum of a thousand probabilities is off by percents, and so is where it crosses p.
    logits, settings = torch.randn(300, 1000).bfloat16(), DrawSettings(top_p=0.5)
    low, wide = (draw_ids(x, settings, rng=torch.Generator().manual_seed(1)) for x in (logits, logits.float()))
    assert torch.equal(low, wide)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0, expected at least 0"),
        ({"top_k": -1}, "top_k is -1, expected at least 0"),
        ({"top_p": 1.1}, "top_p is 1.1, expected 0 to 1"),
        ({"top_p": math.nan}, "top_p is nan, expected a finite number and 0 to 1"),
    ],
)
def test_errors(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DrawSettings(**values)
