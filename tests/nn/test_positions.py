from __future__ import annotations

import contextlib
import math

import pytest
import torch

from hiergen.kernels.dispatch import plain_on_cpu
from hiergen.nn.positions import (
    apply_rotary,
    axial_rotary_table,
    common_frame_positions,
    grid_positions,
    pairwise_table,
    rotary_angles,
    rotary_table,
    sincos_embedding,
    split_channels,
)


def test_axial_angles_by_hand() -> None:
    angles = rotary_angles(torch.tensor([[3.0, 5.0]]), 8)
    # Two axes of four channels: pairs turn with frequencies 1 and 10000 ** -0.5.
    assert angles.tolist() == [pytest.approx([3.0, 0.03, 5.0, 0.05])]


def test_rotation_of_a_pair_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0]])
    turned = apply_rotary(x, rotary_table(torch.tensor([[math.pi / 2]]), 2))
    torch.testing.assert_close(turned, torch.tensor([[0.0, 1.0]]), atol=1e-6, rtol=0)


def test_heads_may_come_before_or_behind_the_tokens() -> None:
    x, table = torch.randn(2, 3, 5, 8), rotary_table(torch.arange(5.0)[:, None], 8)
    behind = apply_rotary(x.transpose(1, 2), table[:, :, None])
    assert behind.is_contiguous()
    assert torch.equal(behind.transpose(1, 2), apply_rotary(x, table))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "permuted", "odd"])
def test_rotation_on_a_cpu_gives_the_numbers_of_the_formula(layout, dtype) -> None:
    heads = torch.randn(2, 5, 3, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = heads[..., 1:] if layout == "odd" else heads[..., :8].contiguous()
    if layout == "permuted":
        x = x.permute(0, 2, 1, 3)
    table = rotary_table(torch.arange(float(x.shape[2]))[:, None], 8)
    seen = []
    for context in (contextlib.nullcontext(), plain_on_cpu()):
        leaf = x.detach().requires_grad_()
        with context:
            turned = apply_rotary(leaf, table)
        (turned.float().square() * torch.arange(8)).sum().backward()
        assert turned.is_contiguous()
        seen.append((turned.detach(), leaf.grad))
    for ours, formula in zip(*seen, strict=True):
        torch.testing.assert_close(ours, formula)


def test_pairwise_tables_hold_each_angle_twice() -> None:
    table = rotary_table(torch.arange(5.0)[:, None], 8)
    pairs = pairwise_table(table)
    assert torch.equal(pairs[..., ::2], table)
    assert torch.equal(pairs[..., 1::2], table)


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


def test_videos_have_frames_before_rows_and_columns() -> None:
    positions = common_frame_positions([(1, 2, 2), (2, 2, 4)])
    assert positions[:2].tolist() == [[0.5, 0, 0.5], [0.5, 0, 2.5]]
    assert positions[4:].tolist() == [[t, r, c] for t in range(2) for r in range(2) for c in range(4)]
    table = sincos_embedding(torch.tensor([[3.0, 2.0, 5.0]], dtype=torch.float64), 8)
    column, row, frame = ([math.sin(x), math.cos(x)] for x in (5, 2, 3))
    slow = 3 * 10000 ** (-1 / 2)
    torch.testing.assert_close(
        table, torch.tensor([[*column, *row, frame[0], math.sin(slow), frame[1], math.cos(slow)]])
    )


def test_channels_are_split_evenly_and_the_first_axis_takes_the_rest() -> None:
    assert [split_channels(dim, 3) for dim in (24, 32, 64)] == [[8, 8, 8], [12, 10, 10], [24, 20, 20]]
    assert split_channels(16, 2) == [8, 8]
    positions = common_frame_positions([(3, 4)])
    assert torch.equal(axial_rotary_table(positions, 16), rotary_table(positions, 16))
    video = common_frame_positions([(2, 2, 2)])
    turned = axial_rotary_table(video, 32)
    assert turned.shape == (2, 8, 16)
    # Tokens 0 and 4 differ in their frame only, and so do their angles.
    assert torch.equal(turned[:, 0, 6:], turned[:, 4, 6:])
    assert not torch.equal(turned[:, 0, :6], turned[:, 4, :6])
    with pytest.raises(ValueError, match="dim is 4, expected an even number of at least 6 for 3 position axes"):
        split_channels(4, 3)
