"""Pictures as overlapping windows and back."""

from __future__ import annotations

import itertools

import pytest
import torch

from hiergen.data.images.windows import Windows


@pytest.mark.parametrize("shape", [(64, 64), (200, 131), (65, 300), (40, 90), (7, 7)])
@pytest.mark.parametrize("overlap", [0, 1, 16, 63])
def test_joined_windows_are_the_picture(shape: tuple[int, int], overlap: int) -> None:
    pictures = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    windows = Windows(size=64, overlap=overlap)
    cut = windows.cut(pictures)
    assert cut.shape == (2 * windows.count(*shape), 3, 64, 64)
    torch.testing.assert_close(windows.join(cut, *shape), pictures)


def test_neighbors_overlap_by_at_least_what_was_asked_for() -> None:
    for length in range(64, 400):
        starts = Windows(size=64, overlap=16)._starts(length)
        assert (starts[0], starts[-1]) == (0, length - 64)
        assert all(a + 64 - b >= 16 for a, b in itertools.pairwise(starts))


def test_there_are_no_seams() -> None:
    """Windows whose brightness differs by at most 1 in all: no step between neighboring pixels is as large as a tenth of it."""
    windows = Windows(size=64, overlap=16)
    levels = torch.rand(windows.count(64, 400), 1, 1, 1, generator=torch.Generator().manual_seed(0))
    joined = windows.join(levels.expand(-1, 1, 64, 64), 64, 400)
    assert joined.diff(dim=-1).abs().max() < 0.1
    assert joined.diff(dim=-1).abs().max() > 0.01


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap is 64, expected less than size=64"):
        Windows(size=64, overlap=64)
    with pytest.raises(
        ValueError,
        match=r"windows is \(3, 1, 64, 64\), expected a multiple of 2 windows of side 64 for pictures of 64 x 100",
    ):
        Windows().join(torch.zeros(3, 1, 64, 64), 64, 100)
