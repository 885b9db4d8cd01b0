from __future__ import annotations

import math

import pytest
import torch

from hiergen.bottlenecks.scalar import ScalarQuantizer


def test_the_published_codes_are_numbered_with_the_first_channel_as_the_least_digit() -> None:
    quantizer = ScalarQuantizer((8, 8, 8, 5, 5, 5))
    assert quantizer.vocab_size == 64_000
    assert list(quantizer.parameters()) == []
    codes = quantizer.lookup(torch.tensor([[0, 1, 8, 32_036, 63_999]]))[0]
    assert codes[0].tolist() == [-1] * 6
    assert codes[1].tolist() == [-0.75, *[-1] * 5]
    assert codes[2].tolist() == [-1, -0.75, *[-1] * 4]
    assert codes[3].tolist() == [0] * 6
    assert codes[4].tolist() == [0.75, 0.75, 0.75, 1, 1, 1]
    assert quantizer(torch.zeros(1, 1, 6)).ids.tolist() == [[32_036]]


@pytest.mark.parametrize("levels", [(8, 8, 8, 5, 5, 5), (2, 3, 4), (5, 4, 3)])
def test_every_id_survives_the_round_trip(levels: tuple[int, ...]) -> None:
    """Latents that are squashed to a code's value give its id back, whichever channel they are in."""
    quantizer = ScalarQuantizer(levels)
    ids = torch.arange(quantizer.vocab_size)[None]
    codes = quantizer.lookup(ids)
    columns = []
    for x, level in zip(codes.double().unbind(-1), levels, strict=True):
        half, offset = (level - 1) * 1.001 / 2, 0.5 * (level % 2 == 0)
        columns.append(torch.atanh((x * (level // 2) + offset) / half) - math.atanh(offset / half))
    output = quantizer(torch.stack(columns, dim=-1))
    assert torch.equal(output.ids, ids)
    assert torch.equal(output.codes.float(), codes)
    assert output.losses == {}


def test_codes_and_gradients_are_those_of_plain_loops() -> None:
    levels, rng = (8, 5, 4), torch.Generator().manual_seed(0)
    latents = (3 * torch.randn(2, 7, 3, generator=rng, dtype=torch.float64)).requires_grad_()
    output = ScalarQuantizer(levels)(latents)
    output.codes.sum().backward()
    for sample in range(2):
        for token in range(7):
            wanted = 0
            for channel, level in enumerate(levels):
                z = float(latents[sample, token, channel].detach())
                half, offset = (level - 1) * 1.001 / 2, 0.0 if level % 2 else 0.5
                squashed = math.tanh(z + math.atanh(offset / half))
                digit = round(squashed * half - offset)
                assert float(output.codes[sample, token, channel].detach()) == digit / (level // 2)
                slope = half * (1 - squashed**2) / (level // 2)
                assert float(latents.grad[sample, token, channel]) == pytest.approx(slope, rel=1e-12)
                wanted += (digit + level // 2) * math.prod(levels[:channel])
            assert int(output.ids[sample, token]) == wanted


def test_half_precision_is_computed_in_float32() -> None:
    latents = torch.randn(1, 50, 2, generator=torch.Generator().manual_seed(1)).bfloat16()
    quantizer = ScalarQuantizer((8, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(latents)
    assert output.codes.dtype == torch.float32
    assert torch.equal(output.ids, quantizer(latents.float()).ids)


@pytest.mark.parametrize("levels", [(), (4, 1)])
def test_too_few_levels_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected at least one channel, each of at least 2 levels"):
        ScalarQuantizer(levels)
