from __future__ import annotations

import re

import pytest
import torch

from hiergen.known import Known
from hiergen.levels import square_specs
from hiergen.pyramid import LevelSpec, TokenPyramid

SPECS = (LevelSpec(1, (1, 1), dim=4, vocab_size=13), LevelSpec(4, (2, 2), dim=4, vocab_size=13))


def pyramid(batch: int = 2) -> TokenPyramid:
    rng = torch.Generator().manual_seed(0)
    return TokenPyramid(tuple(torch.randint(13, (batch, s.num_tokens), generator=rng) for s in SPECS), SPECS)


def test_a_level_without_a_mask_is_given_whole() -> None:
    mask = torch.tensor([[True, False, False, True], [False] * 4])
    known = Known(pyramid(), (None, mask))
    assert len(known) == 2
    assert known.mask_of(0).all()
    assert torch.equal(known.mask_of(1), mask)
    assert Known(pyramid()).mask_of(1).all()
    assert Known(pyramid()).is_complete(2)
    assert not known.is_complete(2)
    assert known.is_complete(1)
    assert not known.is_empty
    assert Known(pyramid(), (torch.zeros(2, 1, dtype=torch.bool), mask & False)).is_empty


def test_rows_and_levels_and_devices_take_both_parts_along() -> None:
    mask = torch.tensor([[True, False, False, True], [False] * 4])
    known = Known(pyramid(), (None, mask))
    last = known.rows(slice(1, 2))
    assert len(last) == 1
    assert torch.equal(last.pyramid.levels[1], known.pyramid.levels[1][1:])
    assert torch.equal(last.mask_of(1), mask[1:])
    fine = known.of_levels(1, 2)
    assert fine is not None
    assert fine.pyramid.specs == SPECS[1:]
    assert torch.equal(fine.mask_of(0), mask)
    assert known.of_levels(2, 3) is None
    moved = known.to("meta")
    assert moved.pyramid.device.type == moved.mask_of(1).device.type == "meta"


def test_a_sequence_holds_zeros_where_nothing_is_given_and_composing_puts_back_what_is() -> None:
    mask = torch.tensor([[True, False, False, True], [False] * 4])
    known = Known(TokenPyramid((pyramid().levels[0], pyramid().levels[1].masked_fill(~mask, -7)), SPECS), (None, mask))
    tokens, given = known.sequence((*SPECS, LevelSpec(3, dim=4, vocab_size=13)))
    assert given.tolist() == [[True, True, False, False, True, False, False, False], [True] + [False] * 7]
    assert torch.equal(tokens[given], torch.cat(pyramid().levels, dim=1)[given[:, :5]])
    assert not tokens[~given].any()
    made = known.compose(TokenPyramid(tuple(torch.full_like(level, 12) for level in pyramid().levels), SPECS))
    assert torch.equal(made.levels[0], pyramid().levels[0])
    assert torch.equal(made.levels[1], torch.where(mask, pyramid().levels[1], 12))


def test_outside_of_a_mask_is_given_what_no_pixel_of_it_touches() -> None:
    spec = LevelSpec(9, (3, 3), dim=2)
    levels = TokenPyramid((torch.zeros(2, 1, 2), torch.zeros(2, 9, 2)), (LevelSpec(1, (1, 1), dim=2), spec))
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    # Cells of 8 / 3 pixels: the third row of pixels lies in the first and the second row of cells.
    mask[0, 2, 0] = True
    known = Known.outside(levels, mask)
    assert known.mask_of(0).tolist() == [[False], [True]]
    assert known.mask_of(1)[0].view(3, 3).tolist() == [[False, True, True], [False, True, True], [True] * 3]
    assert known.mask_of(1)[1].all()


def test_outside_by_the_majority_of_a_cell() -> None:
    levels = TokenPyramid((torch.zeros(1, 1, 2), torch.zeros(1, 4, 2)), square_specs((1, 2), dim=2, vocab_size=None))
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :4, :3] = True
    known = Known.outside(levels, mask, share=0.5)
    assert known.mask_of(0).tolist() == [[True]]
    assert known.mask_of(1).tolist() == [[False, True, True, True]]
    with pytest.raises(ValueError, match=r"share is 1.0, expected at least 0 and below 1"):
        Known.outside(levels, mask, share=1.0)


def test_outside_of_clips_takes_a_mask_for_all_frames_or_one_per_frame() -> None:
    levels = TokenPyramid((torch.zeros(1, 8, 3),), (LevelSpec(8, (2, 2, 2), dim=3),))
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 0, 0] = True
    assert Known.outside(levels, mask).mask_of(0).tolist() == [[False, True, True, True] * 2]
    frames = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    frames[0, 3] = True
    assert Known.outside(levels, frames).mask_of(0).tolist() == [[True] * 4 + [False] * 4]


def test_tokens_without_a_place_are_given_where_nothing_is_made() -> None:
    levels = TokenPyramid((torch.zeros(1, 8, 3),), (LevelSpec(8, dim=3),))
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    assert Known.outside(levels, mask).mask_of(0).all()
    with pytest.raises(ValueError, match="level 0 has the grid None, expected rows and columns"):
        Known.outside(levels, ~mask)


@pytest.mark.usefixtures("unchecked")
def test_errors_say_what_came_and_what_was_expected() -> None:
    with pytest.raises(ValueError, match="masks holds 1 masks, expected 2, one per level"):
        Known(pyramid(), (None,))
    with pytest.raises(
        ValueError, match=re.escape("mask of level 1 is torch.int64 of shape (2, 4), expected torch.bool")
    ):
        Known(pyramid(), (None, torch.ones(2, 4, dtype=torch.int64)))
    with pytest.raises(ValueError, match=re.escape("of shape (1, 4), expected torch.bool of shape (2, 4)")):
        Known(pyramid(), (None, torch.ones(1, 4, dtype=torch.bool)))
    with pytest.raises(ValueError, match="level is 2, expected 0 to 1"):
        Known(pyramid()).mask_of(2)
    with pytest.raises(
        ValueError, match=re.escape("mask is torch.float32 of shape (2, 8, 8), expected torch.bool (2, h, w)")
    ):
        Known.outside(pyramid(), torch.zeros(2, 8, 8))
    with pytest.raises(
        ValueError, match=re.escape("mask is torch.bool of shape (3, 8, 8), expected torch.bool (2, h, w)")
    ):
        Known.outside(pyramid(), torch.zeros(3, 8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=re.escape("but level 0 has the grid (1, 1): expected (b, h, w)")):
        Known.outside(pyramid(), torch.zeros(2, 3, 8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="known gives ids -7 to -7 at level 0, expected 0 to 12"):
        Known(TokenPyramid((torch.full((2, 1), -7),), SPECS[:1])).check_tokens()
    broken = TokenPyramid((torch.full((2, 4, 3), torch.nan),), (LevelSpec(4, dim=3),))
    with pytest.raises(ValueError, match="known gives NaN or infinity at level 0, expected finite tokens"):
        Known(broken).check_tokens()
    assert Known(broken, (torch.zeros(2, 4, dtype=torch.bool),)).check_tokens().is_empty
