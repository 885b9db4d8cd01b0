from __future__ import annotations

import pytest
import scipy.stats
import torch

from hiergen.metrics.latents import channel_statistics
from hiergen.pyramid import LevelSpec, TokenPyramid


def test_moments_equal_those_of_scipy_and_a_constant_channel_has_none() -> None:
    rng = torch.Generator().manual_seed(0)
    levels = tuple(torch.randn(5, count, 3, generator=rng).pow(3) + 2 for count in (1, 4))
    for level in levels:
        level[..., 2] = 0.1
    pyramid = TokenPyramid(levels, (LevelSpec(1, (1, 1), 3), LevelSpec(4, (2, 2), 3)))
    tokens = torch.cat([level.reshape(-1, 3) for level in levels]).double().numpy()
    found = channel_statistics(pyramid)
    for channel in range(2):
        assert found[channel].mean == pytest.approx(tokens[:, channel].mean())
        assert found[channel].std == pytest.approx(tokens[:, channel].std())
        assert found[channel].kurtosis == pytest.approx(scipy.stats.kurtosis(tokens[:, channel], fisher=False))
    assert found[2].mean == pytest.approx(0.1)
    assert found[2].std == pytest.approx(0, abs=1e-7)


def test_ids_are_refused() -> None:
    pyramid = TokenPyramid((torch.zeros(2, 1, dtype=torch.int64),), (LevelSpec(1, None, 4, 16),))
    with pytest.raises(ValueError, match="level 0 is discrete: its ids have no moments"):
        channel_statistics(pyramid)
