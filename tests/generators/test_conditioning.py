from __future__ import annotations

import pytest
import torch

from hiergen.generators.conditioning import check_labels, draw_dropped, drop_labels, with_null_labels

LABELS = torch.tensor([3, 0, 2, 1])


def test_labels_are_dropped_by_one_uniform_number_each() -> None:
    wanted = torch.rand(4, generator=torch.Generator().manual_seed(1)) < 0.5
    assert 0 < int(wanted.sum()) < 4
    dropped = draw_dropped(4, 0.5, rng=torch.Generator().manual_seed(1), device=torch.device("cpu"))
    assert torch.equal(dropped, wanted)
    labels = drop_labels(LABELS, 9, 0.5, rng=torch.Generator().manual_seed(1))
    assert torch.equal(labels, torch.where(wanted, 9, LABELS))


def test_nothing_is_drawn_where_nothing_can_be_dropped() -> None:
    rng = torch.Generator().manual_seed(1)
    before = rng.get_state()
    assert torch.equal(drop_labels(LABELS, 9, 0.0, rng=rng), LABELS)
    assert torch.equal(rng.get_state(), before)


def test_null_labels_stand_behind_the_labels() -> None:
    assert with_null_labels(LABELS, 9).tolist() == [3, 0, 2, 1, 9, 9, 9, 9]


def test_refusals_of_labels() -> None:
    check_labels(LABELS, 4)
    check_labels(LABELS[:0], 4)
    with pytest.raises(ValueError, match="class labels span 0 to 3, expected 0 to 2"):
        check_labels(LABELS, 3)
    with pytest.raises(ValueError, match=r"class labels have shape \(1, 4\), expected \(b,\)"):
        check_labels(LABELS[None], 4)
    with pytest.raises(TypeError, match=r"class labels have dtype torch\.int32, expected int64"):
        check_labels(LABELS.int(), 4)
