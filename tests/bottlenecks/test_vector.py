from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hiergen.bottlenecks import vector
from hiergen.bottlenecks.vector import VectorQuantizer, nearest_ids


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("chunk", [1, 70, 2**24])
def test_ids_are_the_nearest_rows(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector, "_SEARCH_CHUNK", chunk)
    quantizer, latents = VectorQuantizer(20, 4), torch.randn(3, 7, 4)
    codes, ids, _ = quantizer(latents)
    book, points = unit(quantizer.codebook.detach().double()), unit(latents.double())
    for sample in range(3):
        for token in range(7):
            distances = [float((points[sample, token] - row).square().sum()) for row in book]
            assert ids[sample, token] == distances.index(min(distances))
    assert ids.dtype == torch.int64
    torch.testing.assert_close(codes, book[ids].float(), rtol=1e-6, atol=1e-6)


def test_ties_go_to_the_lowest_row() -> None:
    book = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [2**-0.5, 2**-0.5]])
    assert nearest_ids(points, book).tolist() == [1, 0, 4, 0]


def test_ids_to_codes_to_ids_is_the_identity() -> None:
    quantizer = VectorQuantizer(64, 8)
    ids = torch.arange(64).reshape(2, 32)
    assert torch.equal(quantizer(quantizer.lookup(ids)).ids, ids)
    assert torch.equal(quantizer.lookup(ids).norm(dim=-1).round(decimals=5), torch.ones(2, 32))


def test_gradient_passes_straight_through_to_the_normalized_latents() -> None:
    quantizer, weight = VectorQuantizer(16, 4), torch.randn(2, 3, 4)
    latents = torch.randn(2, 3, 4, requires_grad=True)
    (result,) = torch.autograd.grad((quantizer(latents).codes * weight).sum(), latents)
    (wanted,) = torch.autograd.grad((unit(latents) * weight).sum(), latents)
    torch.testing.assert_close(result, wanted)


def test_losses_pull_latents_and_codes_with_their_weights() -> None:
    quantizer, latents = VectorQuantizer(16, 4, commitment_weight=0.25), torch.randn(2, 3, 4, requires_grad=True)
    _, ids, losses = quantizer(latents)
    assert list(losses) == ["quantizer"]
    book = quantizer.codebook
    error = (unit(book)[ids] - unit(latents)).square().mean()
    torch.testing.assert_close(losses["quantizer"], 1.25 * error)
    for source, weight in ((latents, 0.25), (book, 1.0)):
        (result,) = torch.autograd.grad(losses["quantizer"], source, retain_graph=True)
        (wanted,) = torch.autograd.grad(weight * error, source, retain_graph=True)
        torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-6)


def test_entropy_term_against_loops() -> None:
    quantizer, latents = VectorQuantizer(5, 3, entropy_weight=0.5, entropy_temperature=0.3), torch.randn(2, 4, 3)
    book, points = unit(quantizer.codebook.detach().double()), unit(latents.double()).flatten(0, 1)
    distributions = []
    for point in points:
        weights = [math.exp(-float((point - row).square().sum()) / 0.3) for row in book]
        distributions.append([w / sum(weights) for w in weights])
    mean = [sum(column) / len(column) for column in zip(*distributions, strict=True)]
    own = sum(-sum(p * math.log(p) for p in each) for each in distributions) / len(distributions)
    gap = own + sum(p * math.log(p + 1e-5) for p in mean)
    assert quantizer(latents).losses["entropy"].item() == pytest.approx(0.5 * gap, rel=1e-4)


def test_soft_weights_mix_the_raw_rows_before_normalizing() -> None:
    quantizer, weights = VectorQuantizer(6, 3), torch.rand(4, 6).softmax(-1)
    torch.testing.assert_close(quantizer.mix(weights), unit(weights @ quantizer.codebook))
    one_hot = torch.eye(6)
    torch.testing.assert_close(quantizer.mix(one_hot), quantizer.lookup(torch.arange(6)[None])[0])


def test_search_and_losses_are_float32_under_autocast() -> None:
    quantizer, latents = VectorQuantizer(512, 8), torch.randn(2, 64, 8)
    plain = quantizer(latents)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = quantizer(latents)
    assert torch.equal(plain.ids, cast.ids)
    assert torch.equal(plain.codes, cast.codes)
    assert cast.losses["quantizer"].dtype == torch.float32


def test_codebook_starts_uniform_in_its_interval() -> None:
    codebook = VectorQuantizer(100, 8).codebook
    assert codebook.abs().max() <= 0.01
    # A uniform distribution on [-a, a] has standard deviation a / sqrt(3).
    assert codebook.std().item() == pytest.approx(0.01 / math.sqrt(3), rel=0.1)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size is 0 and dim is 4, expected at least 1"):
        VectorQuantizer(0, 4)
    with pytest.raises(ValueError, match=r"entropy_temperature is 0\.0, expected a positive number"):
        VectorQuantizer(4, 4, entropy_temperature=0.0)


def test_without_normalization_rows_are_searched_and_returned_as_they_are() -> None:
    quantizer = VectorQuantizer(16, 4, normalize=False, commitment_weight=1.0, codebook_weight=0.25)
    torch.nn.init.normal_(quantizer.codebook)
    latents = (3 * torch.randn(2, 3, 4)).requires_grad_()
    codes, ids, losses = quantizer(latents)
    book = quantizer.codebook
    distances = (latents.detach()[:, :, None] - book.detach()).square().sum(-1)
    assert torch.equal(ids, distances.argmin(-1))
    torch.testing.assert_close(codes, book[ids])
    assert torch.equal(quantizer.lookup(ids), book[ids])
    torch.testing.assert_close(quantizer.mix(torch.full((1, 16), 1 / 16)), book.mean(0, keepdim=True))
    error = (latents - book[ids]).square().mean()
    for source, weight in ((latents, 1.0), (book, 0.25)):
        (result,) = torch.autograd.grad(losses["quantizer"], source, retain_graph=True)
        (wanted,) = torch.autograd.grad(weight * error, source, retain_graph=True)
        torch.testing.assert_close(result, wanted)
    (gradient,) = torch.autograd.grad(codes.sum(), latents)
    assert torch.equal(gradient, torch.ones_like(latents))
