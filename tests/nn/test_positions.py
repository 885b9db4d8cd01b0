from __future__ import annotations

import math

import pytest
import torch

from hiergen.nn.positions import apply_rotary, grid_positions, rotary_angles, rotary_table


def test_axial_angles_by_hand() -> None:
    angles = rotary_angles(torch.tensor([[3.0, 5.0]]), 8)
    # Two axes of four channels: pairs turn with frequencies 1 and 10000 ** -0.5.
    assert angles.tolist() == [pytest.approx([3.0, 0.03, 5.0, 0.05])]


def test_rotation_of_a_pair_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0]])
    turned = apply_rotary(x, rotary_table(torch.tensor([[math.pi / 2]]), 2))
    torch.testing.assert_close(turned, torch.tensor([[0.0, 1.0]]), atol=1e-6, rtol=0)


def test_scores_depend_on_relative_positions_only() -> None:
    q, k = torch.randn(2, 1, 16, dtype=torch.float64).unbind(0)

    def score(a: float, b: float) -> torch.Tensor:
        tables = [rotary_table(torch.tensor([[float(p), 2.0 * p]]), 16).double() for p in (a, b)]
        return (apply_rotary(q, tables[0]) * apply_rotary(k, tables[1])).sum()

    torch.testing.assert_close(score(3, 7), score(10, 14), atol=1e-5, rtol=1e-5)


def test_grid_positions_are_row_major() -> None:
    assert grid_positions(2, 3).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_half_precision_is_rotated_in_single() -> None:
    x, table = torch.randn(4, 8), rotary_table(torch.arange(4.0)[:, None], 8)
    torch.testing.assert_close(apply_rotary(x.bfloat16(), table), apply_rotary(x.bfloat16().float(), table).bfloat16())


def test_head_dim_must_split_into_pairs() -> None:
    with pytest.raises(ValueError, match="head_dim is 6, expected a multiple of 4 for 2 position axes"):
        rotary_angles(torch.zeros(1, 2), 6)
