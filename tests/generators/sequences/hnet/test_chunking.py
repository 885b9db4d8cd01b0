"""The router, the smoother and the ratio loss of H-Net against plain loops, in both of their published readings."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hiergen.generators.sequences.hnet.chunking import (
    Chunks,
    Router,
    RouterState,
    boundaries_over_symbols,
    chunk_index,
    ratio_loss,
    smooth,
    straight_through,
    upsample,
)

N, DIM = 12, 5


def encoded(batch: int = 2) -> Tensor:
    return torch.randn(batch, N, DIM, generator=torch.Generator().manual_seed(2)).double()


def router(**settings: str) -> Router:
    torch.manual_seed(0)
    return Router(DIM, **settings).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("query_from", ["previous", "current"])
def test_a_boundary_is_where_neighbors_differ(query_from: str) -> None:
    model, e = router(query_from=query_from), encoded()
    found = model(e)
    for row in range(2):
        for t in range(1, N):
            left, right = (e[row, t - 1], e[row, t]) if query_from == "previous" else (e[row, t], e[row, t - 1])
            query, key = model.query.weight @ left, model.key.weight @ right
            p = (1 - query @ key / (query.norm() * key.norm())) / 2
            torch.testing.assert_close(found.probability[row, t], p, rtol=1e-12, atol=1e-12)
            assert bool(found.is_boundary[row, t]) == bool(p > 0.5)
    assert (found.probability[:, 0] == 1).all()
    assert 2 < found.counts.sum() < 2 * N


def test_exactly_one_half_is_no_boundary_and_zeros_are_no_trouble() -> None:
    model = router()
    with torch.no_grad():
        for layer in (model.query, model.key):
            torch.nn.init.eye_(layer.weight)
    e = torch.zeros(1, 3, DIM, dtype=torch.float64)
    e[0, 0, 0] = e[0, 1, 1] = 1.0
    found = model(e)
    assert found.probability.tolist() == [[1.0, 0.5, 0.5]]
    assert found.is_boundary.tolist() == [[True, False, False]]


def test_padding_has_no_boundaries_and_packed_sequences_begin_with_one() -> None:
    model, e = router(), encoded()
    starts = torch.zeros(2, N, dtype=torch.bool)
    place = int((~model(e).is_boundary[0]).nonzero()[0, 0])
    starts[0, place] = True
    found = model(e, lengths=torch.tensor([9, 4]), starts=starts)
    assert found.is_boundary[0, place]
    assert found.probability[0, place] == 1
    assert not found.is_boundary[0, 9:].any()
    assert not found.is_boundary[1, 4:].any()
    torch.testing.assert_close(found.compression, torch.tensor(13 / found.counts.sum().item()))


def test_symbols_in_groups_with_a_state_are_routed_as_at_once() -> None:
    model, e, state = router(), encoded(), RouterState(2, torch.device("cpu"))
    whole = model(e).probability
    first = model(e[:, :5], lengths=torch.tensor([5, 0]), state=state)
    torch.testing.assert_close(first.probability[0], whole[0, :5])
    # The second row begins only now.
    second = model(torch.stack((e[0, 5:], e[1, :7])), state=state)
    torch.testing.assert_close(second.probability[0], whole[0, 5:])
    torch.testing.assert_close(second.probability[1], whole[1, :7])


def chunks_of(rows: list[list[int]]) -> Chunks:
    boundary = torch.tensor(rows) > 0
    return Chunks(torch.where(boundary, 0.9, 0.2).double(), boundary, torch.full((len(rows),), len(rows[0])))


def test_boundaries_come_first_and_in_order_behind_them_the_others() -> None:
    index = chunk_index(chunks_of([[1, 0, 0, 1], [1, 1, 0, 1]]), 3)
    assert index.tolist() == [[0, 3, 1], [0, 1, 3]]


def test_smoothing_runs_over_chunks_and_clamps_the_first_too() -> None:
    rng = torch.Generator().manual_seed(3)
    z, p = torch.randn(2, 40, DIM, generator=rng).double(), torch.rand(2, 40, generator=rng).double()
    p[:, 0], p[0, 7] = 1.0, 0.0
    counts, starts = torch.tensor([40, 23]), torch.zeros(2, 40, dtype=torch.bool)
    starts[0, 35] = True
    before = torch.randn(2, DIM, generator=rng).double()
    found = smooth(z, p, counts, starts=starts, before=before)
    for row in range(2):
        last = before[row]
        for k in range(int(counts[row])):
            share = min(max(p[row, k].item(), 1e-4), 1 - 1e-4)
            last = share * z[row, k] + (0 if starts[row, k] else (1 - share)) * last
            torch.testing.assert_close(found[row, k], last, rtol=1e-10, atol=1e-10)
    # Behind the chunks of a row the last one is repeated.
    torch.testing.assert_close(found[1, -1], found[1, 22])
    alone = smooth(z[:1, :1], p[:1, :1], counts[:1] * 0 + 1)
    torch.testing.assert_close(alone[0, 0], 0.9999 * z[0, 0], rtol=1e-12, atol=0)


def test_the_official_rounding_of_the_smoother_is_offered_and_small() -> None:
    rng = torch.Generator().manual_seed(4)
    z, p, counts = 3 * torch.randn(1, 30, DIM, generator=rng), torch.rand(1, 30, generator=rng), torch.tensor([30])
    exact, coarse = smooth(z, p, counts), smooth(z, p, counts, precision="bfloat16")
    last = torch.zeros(DIM)
    for k in range(30):
        share = p[0, k].clamp(1e-4, 1 - 1e-4)
        step = torch.log(1 / (1 - share)).bfloat16().float()
        x = (z[0, k] / step).bfloat16().float()
        last = torch.exp(-step) * last + share.bfloat16().float() * step * x
        torch.testing.assert_close(coarse[0, k], last, rtol=2e-2, atol=2e-2)
    assert 1e-3 < (coarse - exact).abs().max() < 0.2


def test_every_symbol_gets_the_chunk_it_is_in() -> None:
    chunks = chunks_of([[1, 0, 0, 1, 0], [0, 0, 1, 1, 0]])
    smoothed = torch.arange(4.0).view(2, 2, 1) + 10
    found = upsample(smoothed, chunks.is_boundary, torch.tensor([[1.0], [2.0]]))[..., 0]
    assert found.tolist() == [[10, 10, 10, 11, 11], [2, 2, 12, 13, 13]]


def test_the_straight_factor_is_one_with_the_gradient_of_the_chosen() -> None:
    p = torch.tensor([[1.0, 0.3, 0.8]], requires_grad=True)
    factor = straight_through(Chunks(p, p > 0.5, torch.tensor([3])))
    assert torch.equal(factor, torch.ones(1, 3))
    factor.sum().backward()
    assert p.grad is not None
    assert p.grad.tolist() == [[1, -1, 1]]


def test_the_ratio_loss_is_one_at_its_target_and_pushes_towards_it() -> None:
    p = torch.full((1, 12), 1 / 6)
    at_target = Chunks(p, torch.arange(12)[None] % 6 == 0, torch.tensor([12]))
    torch.testing.assert_close(ratio_loss(at_target, 6.0), torch.tensor(1.0))
    for every, sign in ((2, 1), (12, -1)):
        p = torch.full((1, 12), 1 / every, requires_grad=True)
        ratio_loss(Chunks(p, torch.arange(12)[None] % every == 0, torch.tensor([12])), 6.0).backward()
        assert p.grad is not None
        assert math.copysign(1, p.grad[0, 0].item()) == sign


def test_the_ratio_loss_leaves_padding_out_unless_the_official_one_is_asked_for() -> None:
    rng = torch.Generator().manual_seed(5)
    p, lengths = torch.rand(2, 8, generator=rng).double(), torch.tensor([8, 3])
    boundary = (p > 0.5) & (torch.arange(8) < lengths[:, None])
    chunks = Chunks(p, boundary, lengths)

    def loss(share: Tensor, mean: Tensor) -> Tensor:
        return 3 / 2 * (2 * share * mean + (1 - share) * (1 - mean))

    count = boundary.sum().double()
    mean = torch.cat((p[0], p[1, :3])).mean()
    torch.testing.assert_close(ratio_loss(chunks, 3.0), loss(count / 11, mean))
    torch.testing.assert_close(ratio_loss(chunks, 3.0, "padded"), loss(count / 16, p.mean()))


def test_inner_boundaries_are_laid_over_the_symbols() -> None:
    outer = chunks_of([[1, 0, 1, 0, 1, 1], [1, 0, 0, 0, 1, 0]])
    inner = chunks_of([[1, 0, 1, 1], [1, 1, 0, 0]])
    first, second = boundaries_over_symbols([outer, inner])
    assert torch.equal(first, outer.is_boundary)
    assert second.int().tolist() == [[1, 0, 0, 0, 1, 1], [1, 0, 0, 0, 1, 0]]
    assert boundaries_over_symbols([]) == []
