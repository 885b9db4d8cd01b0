"""The public call: layouts, choice of backend, compilation, the module, errors."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
import torch.nn.functional as F

import hiergen.kernels
from hiergen.kernels import (
    OfficialRules,
    PSAConfig,
    PyramidSparseAttention,
    dispatch,
    make_plan,
    pyramid_sparse_attention,
)
from hiergen.kernels.pyramid_attention import full_plan

CONFIG = PSAConfig(query_block=16, key_block=16, rules=OfficialRules(rounding_tile=16))


def _inputs(queries: int = 40, keys: int = 50, dtype: torch.dtype = torch.float32):
    return torch.randn(1, 2, queries, 16, dtype=dtype), *(torch.randn(1, 1, keys, 16, dtype=dtype) for _ in range(2))


def test_layouts_agree_and_the_package_holds_the_parts():
    q, k, v = _inputs()
    plan = make_plan(q, k, CONFIG)
    out = pyramid_sparse_attention(q, k, v, plan=plan)
    assert hiergen.kernels.pyramid_attention.pyramid_sparse_attention is pyramid_sparse_attention
    swapped = pyramid_sparse_attention(*(x.transpose(1, 2) for x in (q, k, v)), plan=plan, layout="bshd")
    torch.testing.assert_close(swapped.transpose(1, 2), out)
    assert torch.equal(pyramid_sparse_attention(q, k, v, config=CONFIG), out)
    with_lse, lse = pyramid_sparse_attention(q, k, v, plan=plan, return_lse=True, scale=16**-0.5)
    assert torch.equal(with_lse, out)
    assert lse.shape == (1, 2, 40)


def test_backends_agree_and_auto_says_what_it_took(caplog):
    q, k, v = _inputs()
    plan = make_plan(q, k, CONFIG, is_causal=True, key_offset=10)
    reference = pyramid_sparse_attention(q, k, v, plan=plan, backend="reference")
    torch.testing.assert_close(pyramid_sparse_attention(q, k, v, plan=plan, backend="triton"), reference)
    dispatch._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="hiergen.kernels.dispatch"):
        for _ in range(2):
            torch.testing.assert_close(pyramid_sparse_attention(q, k, v, plan=plan), reference)
    assert len(caplog.messages) == 1
    assert "runs on backend 'gather' (not triton: Triton's interpreter is for tests" in caplog.messages[0]


@pytest.mark.usefixtures("unchecked")
def test_torch_compile_sees_one_graph():
    q, k, v = (x.requires_grad_() for x in _inputs(20, 33))
    plan = make_plan(q, k, CONFIG)

    def loss(q, k, v):
        return pyramid_sparse_attention(q, k, v, plan=plan, backend="triton").square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for x, y in zip(
        torch.autograd.grad(compiled(q, k, v), (q, k, v)), torch.autograd.grad(loss(q, k, v), (q, k, v)), strict=True
    ):
        torch.testing.assert_close(x, y)


def test_the_module_warms_up_with_dense_attention():
    q, k, v = _inputs()
    module = PyramidSparseAttention(dataclasses.replace(CONFIG, warmup_steps=2))
    dense = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert torch.equal(module(q, k, v, step=1), dense)
    assert torch.equal(module(q, k, v, step=2), pyramid_sparse_attention(q, k, v, config=CONFIG))
    assert torch.equal(
        module(q, k, v, plan=full_plan(40, 50, pool=8)),
        pyramid_sparse_attention(q, k, v, plan=full_plan(40, 50, pool=8)),
    )
    swapped = PyramidSparseAttention(dataclasses.replace(CONFIG, warmup_steps=2), layout="bshd")
    mask = torch.arange(50)[None] < 30
    out = swapped(*(x.transpose(1, 2) for x in (q, k, v)), step=0, key_mask=mask).transpose(1, 2)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k[:, :, :30], v[:, :, :30], enable_gqa=True))
    assert PyramidSparseAttention("wan2.1-14b-balanced").config.mode == "threshold"


def test_padded_batches_equal_single_ones():
    q, k, v = _inputs(32, 64)
    mask = torch.arange(64)[None] < 43
    alone = pyramid_sparse_attention(
        q, k[:, :, :43], v[:, :, :43], plan=full_plan(32, 43, pool=2, query_block=16, key_block=16)
    )
    for backend in ("reference", "triton"):
        out = pyramid_sparse_attention(
            q, k, v, plan=full_plan(32, 64, pool=2, query_block=16, key_block=16), key_mask=mask, backend=backend
        )
        torch.testing.assert_close(out, alone)


@pytest.mark.usefixtures("unchecked")
def test_errors():
    q, k, v = _inputs()
    plan = full_plan(40, 50)
    wrong = {
        "layout is 'sbhd'": {"layout": "sbhd"},
        "plan was given together with config": {"plan": plan, "config": CONFIG},
        "the plan is for 40 queries and 51 keys, the inputs hold 40 and 50": {"plan": full_plan(40, 51)},
        "the plan is for batch 1 and 3 heads, the queries have 1 and 2": {"plan": full_plan(40, 50, heads=3)},
        r"key_mask has shape \(1, 4\)": {"plan": plan, "key_mask": torch.ones(1, 4, dtype=torch.bool)},
        "backend is 'cuda', expected 'auto' or one of 'triton', 'flex', 'gather', 'dense', 'reference'": {
            "plan": plan,
            "backend": "cuda",
        },
        "key_mask was given with a plan whose tail is 'replicate'": {
            "plan": dataclasses.replace(plan, tail="replicate"),
            "key_mask": torch.ones(1, 50, dtype=torch.bool),
        },
    }
    for message, kwargs in wrong.items():
        with pytest.raises(ValueError, match=message):
            pyramid_sparse_attention(q, k, v, **kwargs)
    with pytest.raises(ValueError, match="the plan is on meta, the queries on cpu"):
        pyramid_sparse_attention(q, k, v, plan=full_plan(40, 50, device="meta"))
    with pytest.raises(ValueError, match="expected 4-D, k and v alike"):
        pyramid_sparse_attention(q, k, v[:, :, :4], plan=plan)
    with pytest.raises(ValueError, match="differ in batch or head size"):
        pyramid_sparse_attention(q[..., :8], k, v, plan=plan)
    with pytest.raises(ValueError, match="q has 2 heads and k 3, expected a divisor"):
        pyramid_sparse_attention(q, k.expand(1, 3, 50, 16), v.expand(1, 3, 50, 16), plan=plan)
    with pytest.raises(ValueError, match="expected one dtype"):
        pyramid_sparse_attention(q.double(), k, v, plan=plan)


def test_a_named_backend_that_cannot_run_says_why():
    q, k, v = _inputs()
    plan = full_plan(40, 50)
    refused = {
        ("triton", torch.bfloat16): "Triton's interpreter computes bfloat16 wrongly",
        ("triton", torch.float64): "the inputs are torch.float64",
    }
    for (backend, dtype), reason in refused.items():
        if backend == "triton" and dtype == torch.bfloat16 and torch.cuda.is_available():
            continue
        with pytest.raises(RuntimeError, match=f"backend '{backend}' of pyramid_attention cannot run: {reason}"):
            pyramid_sparse_attention(q.to(dtype), k.to(dtype), v.to(dtype), plan=plan, backend=backend)
    with pytest.raises(RuntimeError, match="FlexAttention has no gradient on a CPU"):
        pyramid_sparse_attention(q.requires_grad_(), k, v, plan=plan, backend="flex")
    wide = torch.randn(1, 1, 50, 320)
    with pytest.raises(RuntimeError, match="the head size is 320, above 128"):
        pyramid_sparse_attention(wide, wide, wide, plan=full_plan(50, 50), backend="triton")
