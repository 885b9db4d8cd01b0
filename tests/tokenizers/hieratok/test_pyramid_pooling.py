from __future__ import annotations

import itertools

import jaxtyping
import pytest
import torch
import torch.nn.functional as F

from hiergen.tokenizers.hieratok.pyramid_pooling import PyramidPool

SIDES = (1, 2, 4, 8, 16)


def maps(sequence: torch.Tensor, sides: tuple[int, ...]) -> list[torch.Tensor]:
    """Return the levels as (b, d, s, s) maps."""
    levels = sequence.split([side**2 for side in sides], dim=1)
    return [level.transpose(1, 2).unflatten(2, (side, side)) for level, side in zip(levels, sides, strict=True)]


def test_area_pooling_is_area_interpolation_and_telescopes() -> None:
    tokens = torch.randn(2, 256, 3, dtype=torch.float64)
    levels = maps(PyramidPool(3, SIDES)(tokens), SIDES)
    fine = tokens.transpose(1, 2).unflatten(2, (16, 16))
    assert torch.equal(levels[-1], fine)
    for level, side in zip(levels, SIDES, strict=True):
        torch.testing.assert_close(level, F.interpolate(fine, size=(side, side), mode="area"))
    for coarse, finer in itertools.pairwise(levels):
        torch.testing.assert_close(coarse, F.avg_pool2d(finer, 2))


def test_area_pooling_by_plain_loops_where_sides_do_not_divide() -> None:
    fine = torch.randn(1, 25, 1)
    level = maps(PyramidPool(1, (2, 5))(fine), (2, 5))[0][0, 0]
    square = fine.reshape(5, 5)
    expected = [[square[a:b, c:d].mean() for c, d in ((0, 3), (2, 5))] for a, b in ((0, 3), (2, 5))]
    torch.testing.assert_close(level, torch.tensor(expected))


def test_learned_pooling_starts_as_the_average_and_learns() -> None:
    tokens = torch.randn(2, 64, 3)
    sides = (1, 4, 8)
    learned = PyramidPool(3, sides, kind="strided_conv")
    area = PyramidPool(3, sides)(tokens)
    torch.testing.assert_close(learned(tokens), area)
    learned(tokens).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in learned.parameters())
    with torch.no_grad():
        learned.convs[1].weight.mul_(2)
    torch.testing.assert_close(learned(tokens)[:, :17], 2 * area[:, :17])


def test_bilinear_pooling_keeps_linear_ramps() -> None:
    ramp = torch.arange(8.0).expand(8, 8).reshape(1, 64, 1)
    middle = maps(PyramidPool(1, (4, 8), kind="bilinear")(ramp), (4, 8))[0][0, 0]
    # Away from the borders, an interpolated ramp is the ramp at the centers of the coarser cells.
    torch.testing.assert_close(middle[:, 1:3], torch.tensor([2.5, 4.5]).expand(4, 2))


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="needs each scale to divide the next"):
        PyramidPool(1, (3, 8), kind="strided_conv")
    # The type checker of test runs would refuse a wrong literal before we do.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="pool is 'max', expected one of"):
        PyramidPool(1, (1, 8), kind="max")
