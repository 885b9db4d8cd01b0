"""The pyramid, by hand."""

from __future__ import annotations

import pytest
import torch

from hiergen.kernels.pyramid_attention.pooling import (
    build_pyramid,
    packed_log_counts,
    pool_counts,
    similarity_cap,
    unpack,
)


def _column(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[None, None, :, None]


def test_means_of_real_keys():
    packed = build_pyramid(_column([1, 3, 5, 7, 9, 11, 13, 15, 100, 200, 300]), 16)
    assert packed.shape == (1, 1, 14, 1)
    assert unpack(packed, 2).flatten().tolist() == [2, 6, 10, 14, 150, 300, 0, 0]
    assert unpack(packed, 4).flatten().tolist() == [4, 12, 200, 0]
    assert unpack(packed, 8).flatten().tolist() == [8, 200]
    assert pool_counts(11, 16, 4).tolist() == [[4, 4, 3, 0]]


def test_replicated_tail():
    packed = build_pyramid(_column([1, 3, 5, 7, 9, 11, 13, 15, 100, 200, 300]), 16, tail="replicate")
    assert unpack(packed, 4).flatten().tolist() == [4, 12, 225, 300]
    assert pool_counts(11, 16, 4, tail="replicate").tolist() == [[4, 4, 4, 4]]


def test_masked_keys_enter_no_mean():
    mask = torch.tensor([[True, False, True, True] + [False] * 4])
    packed = build_pyramid(_column([1, torch.nan, 5, 7, 9, 9, 9, 9]), 8, key_mask=mask)
    assert unpack(packed, 2).flatten().tolist() == [1, 6, 0, 0]
    assert unpack(packed, 8).flatten().tolist() == [13 / 3]
    logs = packed_log_counts(8, 8, key_mask=mask)
    assert logs.exp2().round().tolist() == [[1, 0, 1, 1, 0, 0, 0, 0, 1, 2, 0, 0, 3, 0, 3]]


def test_half_precision_is_averaged_in_single():
    # In float16, 2048 + 1 is 2048: adding one after the other would lose the ones.
    packed = build_pyramid(_column([2048] + [1] * 7).half(), 8)
    assert unpack(packed, 8).item() == pytest.approx((2048 + 7) / 8, rel=1e-3)


def test_similarity_cap_by_hand():
    a, b = [1.0, 0.0], [0.0, 1.0]
    # Groups of two: alike; of four: first and last orthogonal; of eight: alike again. Not monotone.
    keys = torch.tensor([a, a, b, b, b, b, a, a] * 2)[None, None]
    assert similarity_cap(keys, 16, (0.7, 0.7, 0.7)).tolist() == [[[8]]]
    assert similarity_cap(keys, 16, (0.7, 0.7, 1.0)).tolist() == [[[2]]]
    assert similarity_cap(keys, 16, (1.0, 1.0, 1.0)).tolist() == [[[1]]]
    assert similarity_cap(-keys, 16, (-1.0, -1.0, -1.0)).tolist() == [[[8]]]


def test_errors():
    with pytest.raises(ValueError, match="key_block is 12, expected a multiple of 8"):
        build_pyramid(torch.zeros(1, 1, 4, 2), 12)
    with pytest.raises(ValueError, match="key_mask was given with tail='replicate'"):
        build_pyramid(torch.zeros(1, 1, 4, 2), 16, tail="replicate", key_mask=torch.ones(1, 4, dtype=torch.bool))
