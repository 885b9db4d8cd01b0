"""Dense attention in the place of sparse: where "auto" takes it, and where nothing does."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
import torch.nn.functional as F

from hiergen.kernels import PSAConfig, PyramidSparseAttention, dispatch, make_plan, pyramid_sparse_attention
from hiergen.kernels.pyramid_attention.backends import dense

HALF = PSAConfig(bounds=((1, 0.5),), key_block=64)
#: In tests the real table is put away (conftest.py): up to 256 tokens always dense, up to 512 from half of the products.
TABLE = ((256, 0.0, 0.0), (512, 0.5, 0.2))


@pytest.fixture(autouse=True)
def _table(_always_sparse: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "DENSE_FROM", TABLE)


def draw(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(1, 4, tokens, 8), torch.randn(1, 2, tokens, 8), torch.randn(1, 2, tokens, 8)


def is_dense(config: PSAConfig, tokens: int) -> bool:
    q, k, v = draw(tokens)
    exact = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return torch.equal(pyramid_sparse_attention(q, k, v, config=config), exact)


@pytest.mark.parametrize(
    ("changes", "tokens", "expected"),
    [
        ({}, 256, True),
        ({}, 257, True),
        ({}, 513, False),
        ({"bounds": ((1, 0.49),)}, 256, True),
        ({"bounds": ((1, 0.49),)}, 257, False),
        ({"bounds": ((1, 0.3), (8, 1.0))}, 300, False),
        ({"bounds": ((1, 0.49),), "query_block": 32, "key_block": 32}, 300, True),
        # What shares of scores come to is not known before the plan is made.
        ({"mode": "threshold"}, 256, True),
        ({"mode": "threshold"}, 300, False),
    ],
)
def test_auto_takes_dense_attention_where_the_table_says_so(changes, tokens, expected) -> None:
    assert is_dense(dataclasses.replace(HALF, **changes), tokens) == expected


def test_auto_says_so_once(caplog) -> None:
    dispatch._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="hiergen.kernels.dispatch"):
        assert is_dense(HALF, 200)
        assert is_dense(HALF, 100)
    (message,) = caplog.messages
    assert message.startswith("pyramid_attention runs on backend 'dense'")
    assert "not gather: on CPUs dense attention is faster up to 256 tokens at densities from 0" in message


def test_what_is_named_or_given_is_obeyed() -> None:
    q, k, v = draw(200)
    exact = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    plan = make_plan(q, k, HALF)
    sparse = pyramid_sparse_attention(q, k, v, plan=plan, backend="reference")
    assert not torch.allclose(sparse, exact, atol=1e-3)
    torch.testing.assert_close(pyramid_sparse_attention(q, k, v, plan=plan), sparse)
    torch.testing.assert_close(pyramid_sparse_attention(q, k, v, config=HALF, backend="gather"), sparse)
    torch.testing.assert_close(PyramidSparseAttention(HALF, backend="gather")(q, k, v), sparse)
    assert torch.equal(PyramidSparseAttention(HALF)(q, k, v), exact)
    long = draw(520)
    named = pyramid_sparse_attention(*long, config=HALF, backend="dense", scale=0.2)
    assert torch.equal(named, F.scaled_dot_product_attention(*long, enable_gqa=True, scale=0.2))
    swapped = [x.transpose(1, 2) for x in long]
    torch.testing.assert_close(
        pyramid_sparse_attention(*swapped, config=HALF, backend="dense", scale=0.2, layout="bshd").transpose(1, 2),
        named,
    )


def test_what_dense_attention_does_not_do_is_left_to_sparse() -> None:
    q, k, v = draw(100)
    key_mask = torch.ones(1, 100, dtype=torch.bool)
    for changes, name in (
        ({"is_causal": True}, "is_causal"),
        ({"key_mask": key_mask}, "key_mask"),
        ({"return_lse": True}, "return_lse"),
    ):
        sparse = pyramid_sparse_attention(q, k, v, config=HALF, backend="gather", **changes)
        torch.testing.assert_close(pyramid_sparse_attention(q, k, v, config=HALF, **changes), sparse)
        with pytest.raises(RuntimeError, match=f"'dense' of pyramid_attention cannot run: {name} was asked for"):
            pyramid_sparse_attention(q, k, v, config=HALF, backend="dense", **changes)
    with pytest.raises(RuntimeError, match="'dense' of pyramid_attention cannot run: a plan was given"):
        pyramid_sparse_attention(q, k, v, plan=make_plan(q, k, HALF), backend="dense")


def test_other_devices_were_not_measured() -> None:
    q, k, _ = (x.to("meta") for x in draw(100))
    assert dense.describe(q, k, HALF, []) == (None, None)
    request = dispatch.AttentionRequest(q.device, q.dtype, 8, needs_grad=False)
    assert dense.BACKEND.refuse(request, True) is None
    assert "not measured to be faster" in str(dense.BACKEND.refuse(request, False))
