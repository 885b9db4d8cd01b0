"""Places of tokens: their grid, and attention that fades with distance, against its plain formula."""

from __future__ import annotations

import pytest
import torch

from hiergen.nn.blocks.anchors import anchor_grid, anchor_side, point_side
from hiergen.nn.blocks.perceiver import CrossAttention

REACH = (0.5, 0.0)


def test_anchors_are_the_centers_of_equal_cells() -> None:
    assert anchor_grid(1).tolist() == [[0.0, 0.0, 0.0]]
    assert anchor_grid(8)[:2].tolist() == [[-0.5, -0.5, -0.5], [-0.5, -0.5, 0.5]]
    assert anchor_grid(27).view(3, 3, 3, 3)[:, 0, 0, 0].tolist() == pytest.approx([-2 / 3, 0, 2 / 3])
    for count in (0, 9, 63):
        with pytest.raises(ValueError, match=f"count is {count}, expected a cube of a whole number"):
            anchor_grid(count)


def test_heads_fade_with_the_distance_each_at_its_own_rate() -> None:
    anchors, points = anchor_grid(64).double(), torch.rand(2, 5, 3, dtype=torch.float64) * 2 - 1
    scores = point_side(points) @ anchor_side(anchors, REACH).mT
    square = torch.cdist(points, anchors.expand(2, -1, -1)).square()
    # The spacing of 64 anchors is a half.
    torch.testing.assert_close(scores[:, 0], -square / (2 * 0.25**2))
    assert not scores[:, 1].any()


def test_attention_with_places_is_softmax_of_scores_and_distances() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(6, 2).double()
    anchors, points = anchor_grid(8).double(), torch.rand(2, 5, 3, dtype=torch.float64) * 2 - 1
    tokens, x = torch.randn(2, 8, 6, dtype=torch.float64), torch.randn(2, 5, 6, dtype=torch.float64)
    found = layer(x, layer.project_data(tokens, anchor_side(anchors, REACH)), point_side(points))
    key, value = layer.project_data(tokens)
    query = layer.query(x).view(2, 5, 2, 3).transpose(1, 2)
    distances = point_side(points) @ anchor_side(anchors, REACH).mT
    weights = (query @ key.mT / 3**0.5 + distances).softmax(dim=-1)
    expected = layer.output((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, expected)
