from __future__ import annotations

import math

import pytest
import torch

from hiergen.nn.pyramid_positions import common_frame_positions, sincos_embedding


def test_common_frame_by_hand() -> None:
    positions = common_frame_positions([(2, 2), (4, 4), (16, 16)])
    assert positions[:4].tolist() == [[3.5, 3.5], [3.5, 11.5], [11.5, 3.5], [11.5, 11.5]]
    assert positions[4:8, 1].tolist() == [1.5, 5.5, 9.5, 13.5]
    # The finest level is the frame itself.
    assert positions[20:].tolist() == [[r, c] for r in range(16) for c in range(16)]


def test_common_frame_of_uneven_grids() -> None:
    assert common_frame_positions([(1, 3), (2, 6)])[:3].tolist() == [[0.5, 0.5], [0.5, 2.5], [0.5, 4.5]]


def test_sincos_by_hand() -> None:
    table = sincos_embedding(torch.tensor([[2.0, 5.0]], dtype=torch.float64), 8)
    slow = 10000 ** (-1 / 2)
    row = [math.sin(2), math.sin(2 * slow), math.cos(2), math.cos(2 * slow)]
    column = [math.sin(5), math.sin(5 * slow), math.cos(5), math.cos(5 * slow)]
    torch.testing.assert_close(table, torch.tensor([column + row]))
    with pytest.raises(ValueError, match="dim is 6"):
        sincos_embedding(torch.zeros(1, 2), 6)
