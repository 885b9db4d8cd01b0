"""Token orders."""

from __future__ import annotations

import itertools

import pytest
import torch

from hiergen.kernels.pyramid_attention.planning.orders import gilbert_curve, token_order


def _steps(width: int, height: int, depth: int) -> list[int]:
    points = list(gilbert_curve(width, height, depth))
    assert sorted(points) == sorted(itertools.product(range(width), range(height), range(depth)))
    return [sum(abs(a - b) for a, b in zip(p, q, strict=True)) for p, q in itertools.pairwise(points)]


def test_the_curve_visits_every_cell_of_any_box_once():
    for box in itertools.product((1, 2, 3, 5), (1, 2, 4, 7), (1, 2, 3, 6)):
        steps = _steps(*box)
        assert max(steps, default=1) <= 3


@pytest.mark.parametrize("box", [(4, 4, 4), (8, 8, 8), (16, 8, 1), (8, 6, 2), (20, 12, 6), (7, 5, 1)])
def test_the_curve_is_unbroken_in_even_boxes(box):
    assert set(_steps(*box)) == {1}


@pytest.mark.usefixtures("unchecked")
def test_breaks_are_as_rare_as_published():
    # Wan2.1 at 1280 x 720, 81 frames: 360 of the steps in the published curve leave the neighborhood.
    assert sum(step != 1 for step in _steps(80, 45, 21)) == 360


def test_blocks_are_compact():
    grid = (8, 16, 16)
    place = torch.stack(torch.meshgrid(*(torch.arange(n).float() for n in grid), indexing="ij"), -1).reshape(-1, 3)
    radius = {}
    for name in ("gilbert", "tiles", "raster"):
        blocks = token_order(name, grid).apply(place[None])[0].unflatten(0, (-1, 64))
        radius[name] = float((blocks - blocks.mean(1, keepdim=True)).square().sum(-1).mean().sqrt())
    assert radius["gilbert"] < 0.6 * radius["raster"]
    assert radius["tiles"] < radius["raster"]


@pytest.mark.parametrize("name", ["gilbert", "tiles", "raster"])
def test_an_order_is_undone_and_leaves_text_in_place(name):
    order = token_order(name, (3, 5, 6), tile=(2, 2, 4), text_before=4, text_after=2)
    x = torch.randn(2, 96, 3)
    moved = order.apply(x)
    assert torch.equal(order.undo(moved), x)
    assert torch.equal(moved[:, :4], x[:, :4])
    assert torch.equal(moved[:, -2:], x[:, -2:])
    assert order.index.sort().values.equal(torch.arange(96))


def test_tiles_by_hand():
    order = token_order("tiles", (1, 2, 4), tile=(1, 2, 2))
    assert order.index.tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


@pytest.mark.usefixtures("unchecked")
def test_errors():
    with pytest.raises(ValueError, match=r"grid is \(0, 2, 2\)"):
        token_order("raster", (0, 2, 2))
    with pytest.raises(ValueError, match="order is 'hilbert', expected"):
        token_order("hilbert", (1, 2, 2))
