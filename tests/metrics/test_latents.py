from __future__ import annotations

import pytest
import scipy.stats
import torch

from hiergen.metrics.latents import (
    channel_statistics,
    interpolation_detour,
    neighbor_spread,
    spatial_autocorrelation,
)
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
    for measure in (channel_statistics, neighbor_spread, spatial_autocorrelation):
        with pytest.raises(ValueError, match="level 0 is discrete: its ids have no moments"):
            measure(pyramid)


def pyramid_of(tokens: torch.Tensor, *grid: int) -> TokenPyramid:
    """Return one level of (b, n, c) tokens on a grid."""
    return TokenPyramid((tokens,), (LevelSpec(tokens.shape[1], grid or None, tokens.shape[2]),))


def test_neighbor_spread_is_zero_on_a_ring_and_grows_with_clumps() -> None:
    angles = torch.arange(12) * (2 * torch.pi / 12)
    ring = torch.stack((angles.cos(), angles.sin()), dim=-1)[:, None]
    for k in (1, 2, 3):
        assert neighbor_spread(pyramid_of(ring), k=k) == pytest.approx(0, abs=1e-6)
    # A line with gaps 1, 1, 3, 3 between five points: distances 1, 1, 1, 3, 3 to the nearest, whatever the unit.
    line = torch.tensor([0.0, 1, 2, 5, 8])[:, None, None]
    expected = torch.tensor([0.0, 0, 0, 1, 1]).mul(torch.tensor(3.0).log()).std().item()
    for scale in (1, 1000):
        assert neighbor_spread(pyramid_of(scale * line), k=1) == pytest.approx(expected)
    # A channel that never varies has no say.
    flat = torch.cat((line, torch.full_like(line, 7)), dim=-1)
    assert neighbor_spread(pyramid_of(flat), k=1) == pytest.approx(expected)


def test_spatial_autocorrelation_by_hand() -> None:
    checkers = (torch.arange(4)[:, None] + torch.arange(4)) % 2
    board = checkers.flatten()[None, :, None].float()
    assert spatial_autocorrelation(pyramid_of(board, 4, 4)) == pytest.approx(-1)
    # Every map is one color, and the colors differ: neighbors are equal.
    plain = torch.tensor([1.0, -1.0])[:, None, None].expand(2, 16, 1)
    assert spatial_autocorrelation(pyramid_of(plain, 4, 4)) == pytest.approx(1)
    # Stripes along one direction: +1 that way, -1 across it.
    stripes = (torch.arange(16) % 2).float()[None, :, None]
    assert spatial_autocorrelation(pyramid_of(stripes, 4, 4)) == pytest.approx(0)
    # A mean over channels; a constant one is left out.
    both = torch.cat((board, stripes, torch.ones_like(board)), dim=-1)
    assert spatial_autocorrelation(pyramid_of(both, 4, 4)) == pytest.approx(-0.5)
    noise = torch.randn(500, 16, 2, generator=torch.Generator().manual_seed(0))
    assert abs(spatial_autocorrelation(pyramid_of(noise, 4, 4))) < 0.02


def test_interpolation_detour() -> None:
    rng = torch.Generator().manual_seed(1)
    start, end = (pyramid_of(torch.randn(3, 4, 2, generator=rng), 2, 2) for _ in range(2))

    def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).flatten(1).norm(dim=1)

    straight = interpolation_detour(lambda pyramid: pyramid.concat(), distance, start, end)
    torch.testing.assert_close(straight, torch.ones(3))
    # A half circle is pi / 2 times as long as its chord; sixty chords are nearly the circle.
    zero = pyramid_of(torch.zeros(3, 4, 2), 2, 2)
    turn = pyramid_of(torch.full((3, 4, 2), torch.pi), 2, 2)
    circle = interpolation_detour(
        lambda pyramid: torch.stack((pyramid.concat().cos(), pyramid.concat().sin())).transpose(0, 1),
        distance,
        zero,
        turn,
        num_steps=60,
    )
    torch.testing.assert_close(circle, torch.full((3,), torch.pi / 2), rtol=1e-3, atol=0)


def test_what_latent_measures_refuse() -> None:
    tokens = pyramid_of(torch.randn(3, 4, 2), 2, 2)
    for k in (0, 3):
        with pytest.raises(ValueError, match=rf"k is {k}, expected at least 1 and below the number of samples, 3"):
            neighbor_spread(tokens, k=k)
    with pytest.raises(ValueError, match="a sample has 1 duplicates"):
        neighbor_spread(pyramid_of(torch.ones(3, 4, 2), 2, 2), k=1)
    for wrong in (pyramid_of(torch.randn(3, 4, 2)), pyramid_of(torch.randn(3, 4, 2), 1, 4)):
        with pytest.raises(ValueError, match="expected at least 2 x 2 tokens"):
            spatial_autocorrelation(wrong)
    with pytest.raises(ValueError, match="no channel of the finest level varies"):
        spatial_autocorrelation(pyramid_of(torch.ones(3, 4, 2), 2, 2))
    with pytest.raises(ValueError, match=r"start holds 3 samples of .*, end 2 of"):
        interpolation_detour(TokenPyramid.concat, torch.dist, tokens, tokens[:2])
    with pytest.raises(ValueError, match="num_steps is 0, expected at least 1"):
        interpolation_detour(TokenPyramid.concat, torch.dist, tokens, tokens, num_steps=0)
