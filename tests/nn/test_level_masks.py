from __future__ import annotations

import jaxtyping
import pytest
import torch

from hiergen.kernels.attention import attention
from hiergen.kernels.dispatch import plain_on_cpu
from hiergen.kernels.spans import Spans
from hiergen.nn.level_masks import BlockCausalMask, ScaleAttention, ScaleMask


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
    torch.testing.assert_close(attention(q, k, v, spans=Spans(tuple(mask.spans())), backend="grouped"), plain)


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
    with pytest.raises(
        ValueError,
        match="backend is 'flash', expected 'auto' or one of 'sdpa', 'grouped', 'reference', 'flex', 'xformers', 'hub' for attention",
    ):
        attention(x, x, x, backend="flash")


SIZES = (1, 4, 9)
RULES = {
    "scale_causal": lambda query, key: key <= query,
    "full": lambda query, key: True,
    "block_diagonal": lambda query, key: key == query,
    "reverse": lambda query, key: key >= query,
}


@pytest.mark.parametrize("kind", list(RULES))
def test_mask_spans_and_attention_by_plain_loops(kind: str) -> None:
    mask = ScaleMask(SIZES, kind)
    level = [index for index, size in enumerate(SIZES) for _ in range(size)]
    expected = [[RULES[kind](q, k) for k in level] for q in level]
    assert mask.dense().tolist() == expected

    spans, keys = mask.spans()
    drawn = torch.zeros(14, 14, dtype=torch.bool)
    for (a, z), (i, j) in zip(spans, keys, strict=True):
        drawn[a:z, i:j] = True
    assert drawn.tolist() == expected

    q, k, v = torch.randn(3, 2, 2, 14, 4, dtype=torch.float64)
    scores = (q @ k.transpose(-1, -2) / 2).exp() * torch.tensor(expected)
    plain = scores / scores.sum(-1, keepdim=True) @ v
    for form in ("masked", "grouped"):
        torch.testing.assert_close(ScaleAttention(mask, form)(q, k, v), plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["masked", "grouped"])
def test_a_prefix_of_levels_attends_like_the_whole(form: str) -> None:
    q, k, v = torch.randn(3, 1, 2, 14, 4)
    for kind, is_exact in (("scale_causal", True), ("block_diagonal", True), ("full", False), ("reverse", False)):
        mask = ScaleMask(SIZES, kind)
        attend = ScaleAttention(mask, form)
        assert mask.is_prefix_exact is is_exact
        whole, prefix = attend(q, k, v)[:, :, :5], attend(q[:, :, :5], k[:, :, :5], v[:, :, :5])
        assert torch.allclose(whole, prefix, atol=1e-6) is is_exact
    with pytest.raises(ValueError, match=r"6 tokens ends inside a level; levels end at \[1, 5, 14\]"):
        attend(q[:, :, :6], k[:, :, :6], v[:, :, :6])


def test_published_counts() -> None:
    assert int(ScaleMask((1, 4, 16, 64, 256)).dense().sum()) == 93_093
    assert int(ScaleMask((16, 64, 256)).dense().sum()) == 91_392
    assert int(ScaleMask((64, 256)).dense().sum()) == 86_016
    for kind in RULES:
        single = ScaleMask((256,), kind)
        assert single.dense().all()
        assert single.is_full
        assert single.is_prefix_exact


def test_refusals_of_scale_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected at least one group"):
        ScaleMask(())
    # The type checker of test runs would refuse a wrong literal before we do.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="mask is 'causal', expected one of"):
        ScaleMask((1, 4), "causal")
    with pytest.raises(ValueError, match="attention is 'dense', expected one of"):
        ScaleAttention(ScaleMask((1, 4)), "dense")


def test_regions_are_the_cells_of_the_first_map() -> None:
    mask = ScaleMask((1, 4, 16), "region")
    dense = mask.dense()
    places = [(0, 0, 1)] + [(y, x, side) for side in (2, 4) for y in range(side) for x in range(side)]
    for row, (y, x, side) in enumerate(places):
        for column, (v, u, other) in enumerate(places):
            same = (2 * y // side, 2 * x // side) == (2 * v // other, 2 * u // other)
            assert bool(dense[row, column]) == (same or side == other or 1 in (side, other))
    # A side that the regions do not divide: tokens belong where their middle is.
    uneven = ScaleMask((4, 9), "region").dense()
    assert uneven[0, 4:].tolist() == [True, False, False, False, False, False, False, False, False]
    assert uneven[3, 4:].tolist() == [False, False, False, False, True, True, False, True, True]
    assert torch.equal(dense, dense.T)
    assert not mask.is_prefix_exact

    q, k, v = torch.randn(3, 2, 2, 21, 4, dtype=torch.float64)
    scores = (q @ k.transpose(-1, -2) / 2).exp() * dense
    plain = scores / scores.sum(-1, keepdim=True) @ v
    attend = ScaleAttention(mask, "masked")
    torch.testing.assert_close(attend(q, k, v), plain, rtol=1e-10, atol=1e-10)
    assert attend(q[:, :, :5], k[:, :, :5], v[:, :, :5]).shape == (2, 2, 5, 4)
    with pytest.raises(ValueError, match="mask is 'region', whose keys are no runs: take attention='masked'"):
        ScaleAttention(mask, "grouped")
    with pytest.raises(ValueError, match=r"mask is 'region' with levels of \(1, 6\) tokens, expected square maps"):
        ScaleMask((1, 6), "region")


def test_a_mask_is_spans_where_the_forms_for_cpus_are_taken() -> None:
    mask = BlockCausalMask((2, 1, 3))
    assert mask.on_cpu(torch.device("cpu")) == Spans(((0, 2), (2, 3), (3, 6)))
    assert mask.on_cpu(torch.device("meta")) is None
    with plain_on_cpu():
        assert mask.on_cpu(torch.device("cpu")) is None
