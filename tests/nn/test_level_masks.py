from __future__ import annotations

import pytest
import torch

from hiergen.kernels.attention import attention, grouped_attention
from hiergen.nn.level_masks import BlockCausalMask


def test_dense_mask_by_hand() -> None:
    expected = [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert BlockCausalMask((1, 2, 1)).dense().int().tolist() == expected
    assert BlockCausalMask((1,) * 4).dense().equal(torch.ones(4, 4, dtype=torch.bool).tril())
    assert BlockCausalMask((4,)).dense().all()
    assert BlockCausalMask((4,)).is_full


def test_spans_groups_and_ends_agree() -> None:
    mask = BlockCausalMask((2, 1, 3))
    assert list(mask.spans()) == [(0, 2), (2, 3), (3, 6)]
    assert mask.groups().tolist() == [0, 0, 1, 2, 2, 2]
    assert mask.ends == (2, 3, 6)
    assert mask.num_tokens == 6


@pytest.mark.parametrize("sizes", [(), (2, 0), (-1,)])
def test_groups_must_hold_tokens(sizes) -> None:
    with pytest.raises(ValueError, match="at least one"):
        BlockCausalMask(sizes)


@pytest.mark.parametrize("sizes", [(1, 2, 4), (3, 1, 1, 5)])
def test_masked_grouped_and_reference_attention_agree(sizes) -> None:
    mask = BlockCausalMask(sizes)
    q, k, v = torch.randn(3, 2, 2, mask.num_tokens, 8, dtype=torch.float64).unbind(0)
    plain = attention(q, k, v, mask=mask.dense(), backend="reference")
    torch.testing.assert_close(attention(q, k, v, mask=mask.dense()), plain)
    torch.testing.assert_close(grouped_attention(q, k, v, spans=mask.spans()), plain)


def test_earlier_groups_do_not_depend_on_later_ones() -> None:
    mask = BlockCausalMask((2, 3, 4))
    q, k, v = torch.randn(3, 1, 1, 9, 8, dtype=torch.float64).unbind(0)
    before = attention(q, k, v, mask=mask.dense())
    k[:, :, 5:], v[:, :, 5:] = 7.0, -7.0
    after = attention(q, k, v, mask=mask.dense())
    assert torch.equal(before[:, :, :5], after[:, :, :5])
    assert not torch.allclose(before[:, :, 5:], after[:, :, 5:])


def test_unknown_backend_is_refused() -> None:
    x = torch.zeros(1, 1, 1, 4)
    with pytest.raises(ValueError, match="backend is 'flash', expected 'auto', 'reference' or 'sdpa'"):
        attention(x, x, x, backend="flash")
