"""Reordered tokens: operators as PyTorch wants them, and every kind of tensor moved to the same order."""

from __future__ import annotations

import pytest
import torch

from hiergen.kernels.pyramid_attention import token_order
from hiergen.video import reordering
from hiergen.video.reordering import Entrance, order_tokens

GRID = (2, 3, 4)


@pytest.fixture
def entrance() -> Entrance:
    return Entrance(token_order("gilbert", GRID), batch=2)


def test_the_operator_returns_the_order_of_the_kernels():
    found, expected = order_tokens("gilbert", GRID, torch.zeros(1)), token_order("gilbert", GRID)
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.inverse, expected.inverse)


def test_the_operator_is_registered_as_pytorch_wants():
    given = (torch.zeros(1), *GRID, "tiles", 0)
    torch.library.opcheck(reordering.token_order_op, given, test_utils=("test_schema", "test_faketensor"))


def test_a_caller_may_write_into_the_result():
    order_tokens("gilbert", GRID, torch.zeros(1)).index.zero_()
    assert torch.equal(order_tokens("gilbert", GRID, torch.zeros(1)).index, token_order("gilbert", GRID).index)


def test_every_kind_of_tensor_moves_alike(entrance):
    """All made of the tokens' numbers: after the move each must read as the order's index."""
    numbers = torch.arange(24.0)
    index = entrance.order.index.float()
    tokens = numbers[None, :, None].expand(2, 24, 3)
    assert torch.equal(reordering.reorder_tokens(entrance, tokens)[1, :, 2], index)
    volume = numbers.view(1, 1, *GRID).expand(2, 3, *GRID)
    assert torch.equal(reordering.reorder_volume(entrance, volume).flatten(2)[1, 2], index)
    control = reordering.reorder_control(entrance, volume[:, :, :1])
    assert torch.equal(control.flatten(2)[1, 2], torch.where(index < 12, index, 0.0))
    frames = reordering.reorder_frames(entrance, tokens.reshape(4, 12, 3))
    assert torch.equal(frames.view(2, 24, 3)[1, :, 2], index)
    for moved in reordering.reorder_ltx2_tables(entrance, (numbers[None, :, None], numbers[None, None, :, None])):
        assert torch.equal(moved.flatten(), index)
    for moved in reordering.reorder_flat_tables(entrance, (numbers[:, None], numbers[:, None])):
        assert torch.equal(moved[:, 0], index)
    for moved in reordering.reorder_batched_tables(entrance, (numbers[None, :, None, None],) * 2):
        assert torch.equal(moved.flatten(), index)
    _, modulation, text = reordering.reorder_wan_modulation(entrance, (tokens, tokens, "text"))
    assert torch.equal(modulation[1, :, 2], index)
    assert text == "text"
    modulation, last = reordering.reorder_ltx_modulation(entrance, (tokens.flatten(0, 1), tokens.flatten(0, 1)))
    assert torch.equal(modulation.view(2, 24, 3)[1, :, 2], index)
    assert torch.equal(last, tokens.flatten(0, 1))


def test_text_before_the_video_stays(entrance):
    tokens = torch.cat([torch.full((1, 5, 1), -1.0), torch.arange(24.0)[None, :, None]], dim=1)
    moved = reordering.reorder_tokens(entrance, tokens)[0, :, 0]
    assert torch.equal(moved, torch.cat([torch.full((5,), -1.0), entrance.order.index.float()]))


def test_modulation_that_all_tokens_share_stays(entrance):
    shared = torch.randn(2, 6)
    assert torch.equal(reordering.reorder_wan_modulation(entrance, (shared, shared))[1], shared)
    assert torch.equal(reordering.reorder_ltx_modulation(entrance, (shared, shared))[0], shared)


def test_fixed_frames_stay(entrance):
    order = order_tokens("gilbert", (3, 3, 4), torch.zeros(1), fixed_frames=1)
    assert torch.equal(order.index[:12], torch.arange(12))
    assert torch.equal(order.index[12:] - 12, entrance.order.index)
    alone = order_tokens("gilbert", (1, 3, 4), torch.zeros(1), fixed_frames=1)
    assert torch.equal(alone.index, torch.arange(12))


def test_later_frames_move_as_in_the_whole_video():
    order = order_tokens("gilbert", (3, 3, 4), torch.zeros(1), fixed_frames=1)
    volume = torch.arange(12.0, 36.0).view(1, 1, 2, 3, 4)
    moved = reordering.reorder_later_frames(Entrance(order, batch=1), volume)
    assert torch.equal(moved.flatten(), order.index[12:].float())


@pytest.mark.parametrize("name", ["gilbert", "tiles"])
def test_tokens_stay_in_their_frames_on_request(name):
    order, one = order_tokens(name, (3, 3, 4), torch.zeros(1), by_frame=True), token_order(name, (1, 3, 4))
    for frame in range(3):
        part = slice(12 * frame, 12 * frame + 12)
        assert torch.equal(order.index[part], one.index + 12 * frame)
        assert torch.equal(order.inverse[part], one.inverse + 12 * frame)
