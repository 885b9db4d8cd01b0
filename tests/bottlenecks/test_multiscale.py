"""The multi-scale quantizer against a transcription of its definition in plain float64 loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.bottlenecks import multiscale
from hiergen.bottlenecks.multiscale import LevelUsage, MultiScaleQuantizer, assign_filters

VOCAB, DIM = 23, 5
SQUARES = ((1, 1), (2, 2), (3, 3), (5, 5))


def make(grids: tuple[tuple[int, int], ...] = SQUARES, **options: Any) -> MultiScaleQuantizer:
    """A quantizer whose codes and filters all matter, in float64."""
    torch.manual_seed(3)
    quantizer = MultiScaleQuantizer(VOCAB, DIM, grids, **options).double()
    torch.nn.init.normal_(quantizer.codebook)
    return quantizer


def plain_pool(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Means over the areas of cells of one map `(d, h, w)`."""
    out = torch.empty(x.shape[0], *grid, dtype=x.dtype)
    for i in range(grid[0]):
        for j in range(grid[1]):
            edges = [
                (k * full // side, -(-(k + 1) * full // side))
                for k, full, side in ((i, x.shape[1], grid[0]), (j, x.shape[2], grid[1]))
            ]
            (top, bottom), (left, right) = edges
            out[:, i, j] = x[:, top:bottom, left:right].mean(dim=(1, 2))
    return out


def plain_cubic(t: float, a: float = -0.75) -> float:
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def plain_matrix(small: int, large: int) -> Tensor:
    """Weights `(large, small)` of bicubic interpolation along one side."""
    weights = torch.zeros(large, small, dtype=torch.float64)
    for i in range(large):
        place = (i + 0.5) * small / large - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            weights[i, min(max(tap, 0), small - 1)] += plain_cubic(place - tap)
    return weights


def plain_grow(quantizer: MultiScaleQuantizer, codes: Tensor, level: int) -> Tensor:
    """What codes `(d, p, q)` add: bicubic interpolation, then the level's filter."""
    height, width = quantizer.grids[-1]
    rows, columns = plain_matrix(codes.shape[1], height), plain_matrix(codes.shape[2], width)
    grown = torch.einsum("ip,dpq,jq->dij", rows, codes, columns)
    if not quantizer.filters:
        return grown
    conv = quantizer.filters[assign_filters(len(quantizer.grids), len(quantizer.filters))[level]]
    padded, filtered = torch.zeros(DIM, height + 2, width + 2, dtype=grown.dtype), torch.zeros_like(grown)
    padded[:, 1:-1, 1:-1] = grown
    for i in range(height):
        for j in range(width):
            filtered[:, i, j] = torch.einsum("oirs,irs->o", conv.weight, padded[:, i : i + 3, j : j + 3]) + conv.bias
    return (1 - quantizer.filter_ratio) * grown + quantizer.filter_ratio * filtered


def plain_encode(
    quantizer: MultiScaleQuantizer, latents: Tensor
) -> tuple[list[int], list[Tensor], list[Tensor], list[Tensor]]:
    """Ids of one map, the sum after every level, what a generator reads for all but the first, and what was searched at all."""
    height, width = quantizer.grids[-1]
    target = latents.T.reshape(DIM, height, width)
    residual, total = target, torch.zeros_like(target)
    rows = quantizer.codebook.detach()
    ids, totals, read, searched = [], [], [], []
    for level, grid in enumerate(quantizer.grids):
        if level:
            read.append(plain_pool(total, grid).flatten(1).T)
        pooled, found = plain_pool(residual.detach(), grid), []
        for cell in pooled.flatten(1).T:
            if quantizer.search_cosine:
                scores = [float(cell @ row / (cell.norm() * row.norm())) for row in rows]
                found.append(max(range(VOCAB), key=lambda v: scores[v]))
            else:
                found.append(min(range(VOCAB), key=lambda v: float((cell - rows[v]).square().sum())))
        searched.append(pooled.flatten(1).T)
        codes = quantizer.codebook[found].T.reshape(DIM, *grid)
        grown = plain_grow(quantizer, codes, level)
        total, residual = total + grown, residual - grown
        ids += found
        totals.append(total)
    return ids, totals, read, searched


CASES: dict[str, tuple[tuple[tuple[int, int], ...], dict[str, Any]]] = {
    "four filters": (SQUARES, {}),
    "one filter": (SQUARES, {"num_filters": 1, "filter_ratio": 0.3}),
    "own filters": (((1, 1), (3, 3), (5, 5)), {"num_filters": 0, "filter_ratio": 1.0}),
    "no filters": (SQUARES, {"filter_ratio": 0.0}),
    "by angle": (SQUARES, {"search_cosine": True, "num_filters": 2}),
    "not square": (((1, 2), (2, 3), (4, 6)), {}),
    "two full levels": (((2, 2), (4, 4), (4, 4)), {"num_filters": 3}),
    "one level": (((3, 3),), {}),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_ids_sums_and_inputs_equal_plain_loops(case: str) -> None:
    grids, options = CASES[case]
    quantizer = make(grids, **options)
    latents = 2 * torch.randn(2, quantizer.sizes[-1], DIM, dtype=torch.float64)
    plain = [plain_encode(quantizer, one) for one in latents]
    ids = quantizer.encode(latents)
    assert ids.tolist() == [found for found, _, _, _ in plain]
    assert len(set(ids.flatten().tolist())) > 3
    for level in range(len(grids)):
        prefix = quantizer.lookup(ids[:, : sum(quantizer.sizes[: level + 1])])
        wanted = torch.stack([totals[level].flatten(1).T for _, totals, _, _ in plain])
        torch.testing.assert_close(prefix, wanted, rtol=0, atol=1e-12)
    wanted = torch.stack([torch.cat([latents.new_empty(0, DIM), *read]) for _, _, read, _ in plain])
    torch.testing.assert_close(quantizer.inputs(ids), wanted, rtol=0, atol=1e-12)
    wanted = torch.stack([torch.cat(searched) for _, _, _, searched in plain])
    torch.testing.assert_close(quantizer.searched(latents), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_plain_sums(case: str) -> None:
    grids, options = CASES[case]
    quantizer = make(grids, commitment_weight=0.4, **options)
    latents = torch.randn(2, quantizer.sizes[-1], DIM, dtype=torch.float64, requires_grad=True)
    output = quantizer(latents)
    cotangent = torch.randn_like(output.codes)
    (output.losses["quantizer"] + (output.codes * cotangent).sum()).backward()
    inputs = [latents, *quantizer.parameters()]
    found = [x.grad.clone() if x.grad is not None else torch.zeros_like(x) for x in inputs]
    for x in inputs:
        x.grad = None
    loss = torch.zeros((), dtype=torch.float64)
    for index, one in enumerate(latents):
        # The residuals of the search carry no gradient; the codes of every sum do.
        _, totals, _, _ = plain_encode(quantizer, one)
        target = one.T.reshape(DIM, *grids[-1])
        for total in totals:
            loss = loss + 0.4 * (total.detach() - target).square().sum() + (total - target.detach()).square().sum()
        torch.testing.assert_close(output.codes[index], totals[-1].flatten(1).T, rtol=0, atol=1e-12)
    loss = loss / (len(grids) * latents.numel())
    torch.testing.assert_close(output.losses["quantizer"], loss, rtol=1e-12, atol=0)
    (loss + (latents * cotangent).sum()).backward()
    for x, gradient in zip(inputs, found, strict=True):
        torch.testing.assert_close(gradient, x.grad if x.grad is not None else torch.zeros_like(x), rtol=0, atol=1e-12)
    assert torch.equal(output.ids, quantizer.encode(latents))


#: Of the published program, ties included.
FILTERS = {
    (4, 3): "023",
    (4, 4): "0123",
    (4, 5): "01223",
    (4, 6): "001233",
    (4, 8): "00112233",
    (4, 10): "0011122333",
    (4, 14): "00011112222333",
    (2, 3): "001",
    (2, 5): "00011",
    (2, 14): "00000001111111",
    (3, 4): "0012",
    (3, 8): "00011222",
    (3, 10): "0000111222",
    (3, 14): "00000111122222",
    (10, 10): "0123456789",
    (0, 6): "012345",
    (1, 5): "00000",
    (4, 1): "0",
}


@pytest.mark.parametrize("sizes", FILTERS)
def test_every_scale_takes_the_published_filter(sizes: tuple[int, int]) -> None:
    num_filters, num_levels = sizes
    assert "".join(map(str, assign_filters(num_levels, num_filters))) == FILTERS[sizes]


def test_it_stays_in_float32_and_out_of_autocast() -> None:
    quantizer = MultiScaleQuantizer(VOCAB, DIM, SQUARES)
    torch.nn.init.normal_(quantizer.codebook)
    latents = torch.randn(2, 25, DIM)
    wanted = quantizer(latents)
    quantizer.to(torch.bfloat16)
    assert quantizer.codebook.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer(latents)
        assert torch.equal(quantizer.inputs(found.ids), quantizer.inputs(wanted.ids))
    assert torch.equal(found.ids, wanted.ids)
    assert torch.equal(found.codes, wanted.codes)
    assert quantizer(latents.bfloat16()).codes.dtype == torch.float32


def test_mixtures_of_one_code_are_that_code_and_the_search_may_be_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = make(search_cosine=True)
    latents = torch.randn(2, 25, DIM, dtype=torch.float64)
    ids = quantizer.encode(latents)
    torch.testing.assert_close(quantizer.mix(F.one_hot(ids, VOCAB).double()), quantizer.embed(ids))
    monkeypatch.setattr(multiscale, "_SEARCH_CHUNK", 3 * VOCAB)
    assert torch.equal(quantizer.encode(latents), ids)


def test_usage_is_the_published_average() -> None:
    quantizer = make(((1, 1), (2, 2)), track_usage=True)
    assert quantizer.usage is not None
    assert quantizer.usage.shares() == (0.0, 0.0)
    hits, calls = torch.zeros(2, VOCAB), 0
    for step in range(60):
        latents = torch.randn(6, 4, DIM, dtype=torch.float64)
        ids = quantizer(latents).ids
        for level, part in enumerate(ids.split([1, 4], dim=1)):
            counts = torch.tensor([float((part == v).sum()) for v in range(VOCAB)])
            decay = 0.9 if calls < 100 else 0.99
            hits[level] = counts if calls == 0 else decay * hits[level] + (1 - decay) * counts
            calls += 1
        if step in (0, 10, 59):
            torch.testing.assert_close(quantizer.usage.hits, hits, rtol=1e-6, atol=1e-7)
            margin = 6 * 4 / VOCAB * 0.08
            shares = [
                sum(float(x) >= m for x in row) / VOCAB for row, m in zip(hits, (margin / 4, margin), strict=True)
            ]
            assert quantizer.usage.shares() == pytest.approx(tuple(shares))
            finest = [sum(float(x) >= margin for x in row) / VOCAB for row in hits]
            assert quantizer.usage.shares(by_finest=True) == pytest.approx(tuple(finest))
    quantizer.eval()(latents)
    torch.testing.assert_close(quantizer.usage.hits, hits, rtol=1e-6, atol=1e-7)
    assert isinstance(quantizer.usage, LevelUsage)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"vocab_size is 0 and dim is 5, expected at least 1"):
        MultiScaleQuantizer(0, 5, SQUARES)
    for grids in ((), ((3, 3), (2, 2)), ((0, 1), (2, 2)), ((1, 3), (2, 2))):
        with pytest.raises(ValueError, match="expected sides of at least 1, none larger than those of the last grid"):
            MultiScaleQuantizer(4, 5, grids)
    for options in ({"num_filters": -1}, {"filter_ratio": 1.5}):
        with pytest.raises(ValueError, match="expected at least 0, and 0 to 1"):
            MultiScaleQuantizer(4, 5, SQUARES, **options)
    for method in ("lookup", "inputs"):
        with pytest.raises(
            ValueError,
            match=r"ids holds 3 tokens per sample, which ends inside a level; levels end at \[1, 5, 14, 39\]",
        ):
            getattr(make(), method)(torch.zeros(1, 3, dtype=torch.int64))
