from __future__ import annotations

import pytest
import torch

from hiergen.nn.latent_statistics import LatentStandardizer, LatentStatistics, latent_statistics
from hiergen.pyramid import LevelSpec, TokenPyramid

SPECS = (LevelSpec(1, (1, 1), 3), LevelSpec(4, (2, 2), 3))


def test_statistics_are_those_of_all_tokens() -> None:
    # A large mean: a naive sum of squares in float32 would lose the deviation.
    sequences = [1000 + 0.01 * torch.randn(size, 5, 3, dtype=torch.float64) for size in (2, 7, 1)]
    statistics = latent_statistics(TokenPyramid.split(sequence, SPECS) for sequence in sequences)
    everything = torch.cat([sequence.flatten(0, 1) for sequence in sequences])
    torch.testing.assert_close(
        torch.tensor(statistics.mean, dtype=torch.float64), everything.mean(0), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(torch.tensor(statistics.std, dtype=torch.float64), everything.std(0), rtol=1e-9, atol=0)


def test_constant_channel_has_deviation_one() -> None:
    tokens = torch.randn(2, 4, 2)
    tokens[..., 1] = 7
    statistics = latent_statistics([TokenPyramid((tokens,), (LevelSpec(4, (2, 2), 2),))])
    assert statistics.std[1] == 1
    assert statistics.mean[1] == 7


def test_standardize_and_back() -> None:
    module = LatentStandardizer(2, [1.0, -2.0], [0.5, 4.0], multiplier=3.0).bfloat16()
    tokens = torch.tensor([[[1.25, 2.0]]])
    torch.testing.assert_close(module(tokens), torch.tensor([[[1.5, 3.0]]]))
    torch.testing.assert_close(module.inverse(module(tokens)), tokens)
    assert not module.state_dict()


def test_statistics_by_level_serve_all_levels_and_the_first_ones() -> None:
    mean, std = [[1.0, 0.0], [-1.0, 10.0]], [[0.5, 2.0], [4.0, 1.0]]
    module = LatentStandardizer(2, mean, std, multiplier=3.0, level_sizes=[1, 2])
    tokens = torch.tensor([[[2.0, 4.0], [3.0, 11.0], [-5.0, 10.0]]])
    expected = torch.tensor([[[6.0, 6.0], [3.0, 3.0], [-3.0, 0.0]]])
    torch.testing.assert_close(module(tokens), expected)
    torch.testing.assert_close(module.inverse(expected), tokens)
    torch.testing.assert_close(module(tokens[:, :1]), expected[:, :1])
    # One of the two may still hold for all levels.
    shared = LatentStandardizer(2, mean, [1.0, 2.0], level_sizes=[1, 2])
    torch.testing.assert_close(shared(tokens), torch.tensor([[[1.0, 2.0], [4.0, 0.5], [-4.0, 0.0]]]))


def test_statistics_survive_a_cast() -> None:
    mean = LatentStandardizer(1, [1 / 3], [1.0]).bfloat16().inverse(torch.zeros(1, 1, 1))
    assert float(mean) == pytest.approx(1 / 3, rel=1e-7)


def test_refusals() -> None:
    discrete = TokenPyramid((torch.zeros(1, 4, dtype=torch.int64),), (LevelSpec(4, vocab_size=3),))
    with pytest.raises(ValueError, match="need continuous levels"):
        latent_statistics([discrete])
    with pytest.raises(ValueError, match="at least two tokens, got 0"):
        latent_statistics([])
    with pytest.raises(ValueError, match="latent_mean has 2 channels, latent_std 1"):
        LatentStatistics((0.0, 0.0), (1.0,))
    for bad in (0.0, float("nan")):
        with pytest.raises(ValueError, match="expected positive numbers"):
            LatentStatistics((0.0,), (bad,))
    for bad in ([[0.0]], [[0.0], [0.0], [0.0]], [[0.0], 0.0]):
        with pytest.raises(ValueError, match=r"latent_mean holds . entries, expected a number per channel or 2 lists"):
            LatentStandardizer(1, bad, None, level_sizes=[1, 4])
    with pytest.raises(ValueError, match="have 2 channels, the level specs 3"):
        LatentStandardizer(3, [0.0, 0.0], [1.0, 1.0])
