from __future__ import annotations

import jaxtyping
import pytest
import torch

from hiergen.nn.level_masks import ScaleAttention, ScaleMask

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


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected at least one group"):
        ScaleMask(())
    # The type checker of test runs would refuse a wrong literal before we do.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="mask is 'causal', expected one of"):
        ScaleMask((1, 4), "causal")
    with pytest.raises(ValueError, match="attention is 'dense', expected one of"):
        ScaleAttention(ScaleMask((1, 4)), "dense")
