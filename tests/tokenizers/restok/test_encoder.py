from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hiergen.tokenizers.restok.encoder import expand_levels, merge_coarsest


def level(*rows: list[float], after: tuple[float, ...] = (9.0,)) -> Tensor:
    """Return a sequence of one-channel tokens: a grid, row-major, and what follows it."""
    return torch.tensor([value for row in rows for value in row] + list(after))[None, :, None]


@pytest.mark.parametrize("residual", [True, False])
def test_average_merge_of_a_square(residual: bool) -> None:
    tokens = level([1, 3, 0, 8], [5, 7, 0, 0], [2, 2, 1, 1], [2, 2, 1, 1])
    merged = merge_coarsest(tokens, grid=(4, 4), rule="average", residual=residual)[0, :, 0].tolist()
    assert merged[:4] == [4, 2, 2, 1]
    left = [-3, -1, -2, 6, 1, 3, -2, -2] + [0] * 8
    assert merged[4:20] == (left if residual else tokens[0, :16, 0].tolist())
    assert merged[20:] == [9]


def test_average_merge_halves_only_an_even_side() -> None:
    tall = level([1, 2, 6], [3, 4, 8])
    assert merge_coarsest(tall, grid=(2, 3), rule="average", residual=True)[0, :, 0].tolist() == [
        *[2, 3, 7],
        *[-1, -1, -1, 1, 1, 1],
        9,
    ]
    wide = level([1, 3], [2, 4], [6, 8])
    assert merge_coarsest(wide, grid=(3, 2), rule="average", residual=False)[0, :3, 0].tolist() == [2, 3, 7]


def test_average_merge_loses_nothing() -> None:
    tokens = torch.randn(2, 24, 3)
    merged = merge_coarsest(tokens, grid=(4, 6), rule="average", residual=True)
    coarse, fine = merged[:, :6].unflatten(1, (2, 3)), merged[:, 6:].unflatten(1, (4, 6))
    again = fine + coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(again.flatten(1, 2), tokens)
    # What is left over in a cell has no mean, and is not zero anywhere by construction as with the even rule.
    torch.testing.assert_close(fine.unflatten(2, (3, 2)).unflatten(1, (2, 2)).mean((2, 4)), torch.zeros(2, 2, 3, 3))
    assert fine.abs().min() > 0


def test_even_merge_keeps_every_other_token_and_zeroes_what_it_kept() -> None:
    tokens = level([1, 3, 0, 8], [5, 7, 0, 1])
    merged = merge_coarsest(tokens, grid=(2, 4), rule="even", residual=True)[0, :, 0].tolist()
    assert merged == [1, 0, 5, 0, 0, 2, 0, 8, 0, 2, 0, 1, 9]
    kept = merge_coarsest(tokens, grid=(2, 4), rule="even", residual=False)[0, :, 0].tolist()
    assert kept == [1, 0, 5, 0, 1, 3, 0, 8, 5, 7, 0, 1, 9]


def test_expand_levels_repeats_each_row_for_its_tokens() -> None:
    assert expand_levels(torch.tensor([[1.0], [2.0], [3.0]]), (1, 1, 3))[:, 0].tolist() == [1, 2, 3, 3, 3]
