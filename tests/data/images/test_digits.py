from __future__ import annotations

import pytest
import torch

from hiergen.data.images.digits import load_digits


def test_digits_are_real_balanced_and_split_without_overlap() -> None:
    train, test = load_digits("train"), load_digits("test")
    assert (len(train), len(test)) == (1442, 355)
    assert train.images.shape == (1442, 3, 32, 32)
    assert float(train.images.min()) == -1
    assert float(train.images.max()) == 1
    assert torch.bincount(test.labels).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    distances = torch.cdist(test.images[:, 0].flatten(1), train.images[:, 0].flatten(1))
    assert float(distances.min()) > 0
    assert train.fingerprint != test.fingerprint
    with pytest.raises(ValueError, match="split is 'val'"):
        load_digits("val")
    with pytest.raises(ValueError, match="size is 4, expected at least 8"):
        load_digits("train", size=4)
