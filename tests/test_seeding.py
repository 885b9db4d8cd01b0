from __future__ import annotations

from typing import Any

import pytest
import torch

from hiergen.generators.base import Generator
from hiergen.generators.sampling import DrawSettings, draw_ids
from hiergen.registry import create
from hiergen.seeding import SampleRng, derive_seed, draw_exponential, draw_normal, draw_uniform, draws_of, make_rng

CPU = torch.device("cpu")


def test_seeds_depend_on_every_part_and_their_order() -> None:
    seeds = {derive_seed(*parts) for parts in ((1, 2), (2, 1), (12,), ("1", 2), (1, 2, 0))}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("draw", [draw_uniform, draw_normal, draw_exponential])
def test_a_batch_draws_what_each_sample_draws_alone(draw: Any) -> None:
    whole = draw((5, 3, 4), rng=SampleRng.of(range(5), 7), device=CPU)
    parts = [draw((1, 3, 4), rng=SampleRng.of([index], 7), device=CPU) for index in range(5)]
    assert torch.equal(whole, torch.cat(parts))
    alone = [draw((3, 4), rng=make_rng(7, index), device=CPU) for index in range(5)]
    assert torch.equal(whole, torch.stack(alone))
    assert len({float(row[0, 0]) for row in whole}) == 5


def test_draws_of_one_generator_are_plain_ones() -> None:
    rng = make_rng(3)
    plain = make_rng(3)
    assert torch.equal(draw_uniform((2, 3), rng=rng, device=CPU), torch.rand(2, 3, generator=plain))
    expected = torch.randn(2, 3, generator=plain, dtype=torch.float64)
    assert torch.equal(draw_normal((2, 3), rng=rng, device=CPU, dtype=torch.float64), expected)
    assert torch.equal(draw_exponential((4,), rng=rng, device=CPU), torch.empty(4).exponential_(generator=plain))


def test_samples_may_lie_along_any_dimension() -> None:
    drawn = draw_normal((6, 2, 3), rng=SampleRng.of([4, 9], "x"), device=CPU, batch_dim=1)
    assert torch.equal(drawn[:, 1], torch.randn(6, 3, generator=make_rng("x", 9)))


def test_samples_that_need_no_draw_leave_their_generators_where_they_are() -> None:
    rng = SampleRng.of(range(3), 7)
    drawn = draw_normal((3, 4), rng=draws_of(rng, torch.tensor([True, False, True])), device=CPU)
    again = draw_normal((3, 4), rng=rng, device=CPU)
    fresh = SampleRng.of(range(3), 7)
    first, second = (draw_normal((3, 4), rng=fresh, device=CPU) for _ in range(2))
    assert torch.equal(drawn[[0, 2]], first[[0, 2]])
    assert torch.equal(again, torch.stack((second[0], first[1], second[2])))
    assert draws_of(rng, torch.ones(3, dtype=torch.bool)) is rng
    plain = make_rng(0)
    assert draws_of(plain, torch.zeros(3, dtype=torch.bool)) is plain
    assert draws_of(None, torch.zeros(3, dtype=torch.bool)) is None


def test_refusals() -> None:
    with pytest.raises(ValueError, match="rngs are 0 generators on 0 devices"):
        SampleRng([])
    with pytest.raises(ValueError, match=r"a draw of shape \(3, 4\) has not 2 samples, one per generator, along dim 0"):
        draw_uniform((3, 4), rng=SampleRng.of([0, 1]), device=CPU)


def test_ids_are_drawn_sample_by_sample() -> None:
    logits = torch.randn(4, 6, 50)
    whole = draw_ids(logits, DrawSettings(), rng=SampleRng.of(range(4), 0))
    parts = [draw_ids(logits[i : i + 1], DrawSettings(), rng=SampleRng.of([i], 0)) for i in range(4)]
    assert torch.equal(whole, torch.cat(parts))


def _random(name: str) -> Generator:
    # Nearly every step multiplies rounding errors of random weights: float64 keeps them far below what is compared.
    model = create(name).eval().double()
    rng = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        # Fresh models are uniform, or zero: nothing could depend on anything.
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
    return model


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("har-tiny", {"guidance_scale": 1.5, "top_p": 0.9}),
        ("mar-tiny", {"num_steps": 3, "head_steps": 4, "guidance_scale": 1.5}),
        ("mar-tiny-levels", {"num_steps": 6, "head_steps": 4}),
        ("flow-tiny", {"num_steps": 3, "guidance_scale": 1.5}),
    ],
)
def test_a_sample_does_not_depend_on_its_batch(name: str, settings: dict[str, Any]) -> None:
    """The draws are the same bits; what is computed from them may differ in the last bits with the size of a matrix product."""
    model = _random(name)
    labels = torch.tensor([3, 1, 4, 1, 5])
    chosen = model.make_settings(**settings)

    def generate(indices: list[int]) -> torch.Tensor:
        return model.generate(labels[indices], chosen, rng=SampleRng.of(indices, 11)).concat()

    whole = generate([0, 1, 2, 3, 4])
    parts = torch.cat([generate([0]), generate([1, 2, 3]), generate([4])])
    if whole.is_floating_point():
        torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(parts, whole)
    # Two samples of one class have draws of their own.
    assert not torch.equal(whole[1], whole[3])
