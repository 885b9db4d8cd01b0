from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hiergen.generators.masked.prefix import ConditionPrefix, augment_low_res


def _prefix(**changes: Any) -> ConditionPrefix:
    values: dict[str, Any] = {
        "num_classes": None,
        "num_buffer": 3,
        "feature_shapes": None,
        "low_res_shape": None,
        "embed_low_res_time": True,
        "drop_low_res": False,
    }
    return ConditionPrefix(8, **{**values, **changes})


DROP = torch.tensor([True, False])


def test_a_class_fills_the_buffer() -> None:
    prefix = _prefix(num_classes=4)
    rows = prefix(torch.tensor([2, 0]))
    assert rows.shape == (2, 3, 8)
    assert (rows[0] == prefix.class_embedding.weight[2]).all()
    dropped = prefix(torch.tensor([2, 0]), drop=DROP)
    assert (dropped[0] == prefix.null[0]).all()
    assert torch.equal(dropped[1], rows[1])


def test_features_are_projected_unless_they_fit_and_joined() -> None:
    prefix = _prefix(feature_shapes=[(2, 8), (3, 5)])
    one, two = torch.randn(2, 2, 8), torch.randn(2, 3, 5)
    rows = prefix([one, two])
    assert prefix.num_rows == 5
    assert torch.equal(rows[:, :2], one)
    torch.testing.assert_close(rows[:, 2:], prefix.projections[1](two))
    assert isinstance(prefix.projections[0], nn.Identity)
    assert torch.equal(prefix([one, two], drop=DROP)[0], prefix.null)
    single = _prefix(feature_shapes=[(2, 8)])
    assert torch.equal(single(one), one)


def test_coarse_tokens_come_last_and_survive_a_dropped_class() -> None:
    coarse, time = torch.randn(2, 4, 6), torch.tensor([0.4, 0.6])
    prefix = _prefix(num_classes=4, low_res_shape=(4, 6))
    rows, dropped = (prefix(torch.tensor([1, 1]), coarse, time, drop) for drop in (None, DROP))
    assert prefix.num_rows == rows.shape[1] == 7
    assert torch.equal(rows[:, 3:], dropped[:, 3:])
    assert not torch.equal(rows[0, :3], dropped[0, :3])
    # The rows say how much noise there is, unless they are not to.
    other = prefix(torch.tensor([1, 1]), coarse, time + 0.1)
    assert not torch.allclose(other[:, 3:], rows[:, 3:])
    untold = _prefix(num_classes=4, low_res_shape=(4, 6), embed_low_res_time=False)
    assert torch.equal(
        untold(torch.tensor([1, 1]), coarse, time)[:, 3:], untold(torch.tensor([1, 1]), coarse, time + 0.1)[:, 3:]
    )


def test_coarse_tokens_can_be_dropped_too() -> None:
    prefix = _prefix(num_classes=4, low_res_shape=(4, 6), drop_low_res=True)
    rows = prefix(torch.tensor([1, 1]), torch.randn(2, 4, 6), torch.tensor([0.5, 0.5]), DROP)
    assert torch.equal(rows[0, 3:], prefix.low_res_null)
    assert not torch.equal(rows[1, 3:], prefix.low_res_null)


def test_augmentation_is_the_identity_at_zero_and_noise_at_one() -> None:
    tokens, noise = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    mixed = augment_low_res(tokens, torch.tensor([0.0, 1.0, 0.5]), noise)
    assert torch.equal(mixed[0], tokens[0])
    assert torch.equal(mixed[1], noise[1])
    torch.testing.assert_close(mixed[2], (tokens[2] + noise[2]) / 2)


def test_errors_say_what_came_and_what_was_expected() -> None:
    for both in ({"num_classes": 4, "feature_shapes": [(1, 8)]}, {}):
        with pytest.raises(ValueError, match="expected exactly one of them"):
            _prefix(**both)
    classes = _prefix(num_classes=4)
    with pytest.raises(ValueError, match=r"condition is torch.float32 of shape \(2, 3, 8\), expected class labels"):
        classes.check(torch.randn(2, 3, 8), None)
    with pytest.raises(ValueError, match=r"low_res is given, but this model's low_res_shape is None"):
        classes.check(torch.tensor([1]), torch.randn(1, 4, 6))
    features = _prefix(feature_shapes=[(2, 8), (3, 5)], low_res_shape=(4, 6))
    good = [torch.randn(2, 2, 8), torch.randn(2, 3, 5)]
    assert features.check(good, torch.randn(2, 4, 6)) == 2
    with pytest.raises(
        ValueError, match=r"condition is a list of shapes \[\(2, 2, 8\)\], expected features \(b, 2, 8\)"
    ):
        features.check(good[:1], torch.randn(2, 4, 6))
    with pytest.raises(ValueError, match="low_res is missing"):
        features.check(good, None)
    with pytest.raises(ValueError, match=r"low_res has shape \(2, 3, 6\), expected \(2, 4, 6\)"):
        features.check(good, torch.randn(2, 3, 6))
