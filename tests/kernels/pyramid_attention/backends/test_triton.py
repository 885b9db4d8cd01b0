"""The Triton kernels through the interpreter, against the reference in float64.

The rule: a kernel's error is at most twice the error that plain PyTorch makes in the same dtype.
"""

from __future__ import annotations

import mmap

import pytest
import torch

from hiergen.kernels.pyramid_attention.backends.reference import reference_attention
from hiergen.kernels.pyramid_attention.backends.triton import triton_attention
from hiergen.kernels.pyramid_attention.plan import PyramidPlan, full_plan
from hiergen.kernels.pyramid_attention.pooling import build_pyramid

pytest.importorskip("triton")

# A covering matrix: query block, key block, tile, queries per program, pools, causal, raggedness, masks, head size, heads, dtype.
MATRIX = [
    {"query_block": 16, "key_block": 16, "tile": 16, "block_m": 16, "queries": 20, "keys": 41, "dim": 16},
    {"query_block": 16, "key_block": 16, "tile": 32, "block_m": 16, "queries": 32, "keys": 64, "dim": 24, "is_causal": True, "key_offset": 32},
    {"query_block": 16, "key_block": 32, "tile": 16, "block_m": 16, "queries": 33, "keys": 70, "dim": 16, "is_causal": True, "key_offset": 37, "dtype": "float16"},
    {"query_block": 16, "key_block": 32, "tile": 64, "block_m": 16, "queries": 16, "keys": 96, "dim": 32, "pools": (8, 0), "heads": 1},
    {"query_block": 32, "key_block": 64, "tile": 16, "block_m": 16, "queries": 20, "keys": 70, "dim": 16, "heads": 4, "key_heads": 2, "masked": True},
    {"query_block": 32, "key_block": 64, "tile": 32, "block_m": 32, "queries": 40, "keys": 128, "dim": 16, "pools": (4, 8), "dtype": "float16"},
    {"query_block": 64, "key_block": 64, "tile": 64, "block_m": 32, "queries": 64, "keys": 100, "dim": 64, "heads": 1, "tail": "replicate"},
    {"query_block": 32, "key_block": 128, "tile": 16, "block_m": 16, "queries": 30, "keys": 150, "dim": 16, "is_causal": True, "key_offset": 120, "masked": True},
    {"query_block": 32, "key_block": 128, "tile": 64, "block_m": 32, "queries": 50, "keys": 256, "dim": 16, "pools": (2, 8, 0), "dtype": "float16", "batch": 2, "heads": 1},
    {"query_block": 16, "key_block": 16, "tile": 128, "block_m": 16, "queries": 16, "keys": 80, "dim": 128, "heads": 1, "pools": (1, 4)},
]  # fmt: skip


def _error(x: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((x.double() - wanted).abs().max())


def _within_twice(x: torch.Tensor, eager: torch.Tensor, wanted: torch.Tensor) -> bool:
    # The floor is a few roundings in float32, the precision of the stored log-sum-exp, whatever the dtype.
    floor = 4 * torch.finfo(torch.float32).eps * float(wanted.abs().max())
    return _error(x, wanted) <= 2 * _error(eager, wanted) + floor


@pytest.mark.parametrize("index", range(len(MATRIX)))
def test_forward_and_gradients(index, random_case, eager_attention, monkeypatch):
    settings = dict(MATRIX[index])
    tile, block_m = settings.pop("tile"), settings.pop("block_m")
    dtype = getattr(torch, settings.pop("dtype", "float32"))
    case = random_case(**settings, seed=index)
    _launch_with(monkeypatch, tile, block_m)
    grad = torch.randn_like(case.q).to(dtype)

    def run(attend, to):
        # Every computation starts from the inputs as `dtype` holds them.
        inputs = [x.to(dtype).to(to).requires_grad_() for x in (case.q, case.k, case.v)]
        out = attend(*inputs)
        return [out.detach(), *torch.autograd.grad((out * grad.to(to)).sum(), inputs)]

    wanted = run(lambda *x: reference_attention(*x, case.plan, key_mask=case.key_mask)[0], torch.float64)
    eager = run(lambda *x: eager_attention(*x, case.plan, case.key_mask), dtype)
    ours = run(lambda *x: triton_attention(*x, case.plan, key_mask=case.key_mask)[0], dtype)
    for name, x, plain, exact in zip(("out", "dq", "dk", "dv"), ours, eager, wanted, strict=True):
        assert x.dtype == dtype
        assert _within_twice(x, plain, exact), f"{name}: {_error(x, exact):.2e}, eager {_error(plain, exact):.2e}"
    inputs = [x.to(dtype) for x in (case.q, case.k, case.v)]
    _, lse = triton_attention(*inputs, case.plan, key_mask=case.key_mask)
    _, exact = reference_attention(*(x.double() for x in inputs), case.plan, key_mask=case.key_mask)
    torch.testing.assert_close(lse.double(), exact, rtol=1e-6, atol=1e-5 if dtype == torch.float32 else 1e-3)


def test_gradient_of_the_log_sum_exp(random_case):
    case = random_case(queries=16, keys=40, key_block=16, heads=1, pools=(1, 2, 8))
    weight = torch.randn(1, 1, 16)

    def gradients(attend, dtype):
        inputs = [x.to(dtype).requires_grad_() for x in (case.q, case.k, case.v)]
        out, lse = attend(*inputs, case.plan)
        return torch.autograd.grad((lse * weight).sum() + out.sum(), inputs)

    for x, exact in zip(
        gradients(triton_attention, torch.float32), gradients(reference_attention, torch.float64), strict=True
    ):
        torch.testing.assert_close(x.double(), exact, rtol=1e-5, atol=1e-5)


def test_rows_without_keys_are_zero(random_case):
    case = random_case(pools=(0,), queries=20, keys=40)
    q, k, v = (x.float().requires_grad_() for x in (case.q, case.k, case.v))
    out, lse = triton_attention(q, k, v, case.plan)
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(lse, torch.full_like(lse, -torch.inf))
    for gradient in torch.autograd.grad(out.sum(), (q, k, v)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_queries_before_the_first_whole_group_are_zero(random_case):
    # Causal at pool 8: the first seven queries of a block that reads keys see none themselves.
    case = random_case(queries=16, keys=16, key_block=16, heads=1, pools=(8,), is_causal=True)

    def run(attend, dtype):
        inputs = [x.to(dtype).requires_grad_() for x in (case.q, case.k, case.v)]
        out = attend(*inputs, case.plan)[0]
        return [out, *torch.autograd.grad(out.sum(), inputs)]

    ours, wanted = run(triton_attention, torch.float32), run(reference_attention, torch.float64)
    for x, exact in zip(ours, wanted, strict=True):
        torch.testing.assert_close(x.double(), exact, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours[0][:, :, :7], torch.zeros(1, 1, 7, 16))
    assert torch.equal(ours[1][:, :, :7], torch.zeros(1, 1, 7, 16))


def test_nothing_is_read_beyond_the_keys_nor_left_unwritten(random_case, monkeypatch):
    case = random_case(queries=20, keys=41, dim=24, key_block=16)
    wanted = triton_attention(case.q.float(), case.k.float(), case.v.float(), case.plan)
    # Inputs lie in larger buffers of NaN; new buffers start as NaN.
    surrounded = []
    for x in (case.q, case.k, case.v):
        buffer = torch.full((x.shape[0], x.shape[1], x.shape[2] + 40, 40), torch.nan)
        buffer[:, :, 8 : 8 + x.shape[2], 8:32] = x.float()
        surrounded.append(buffer[:, :, 8 : 8 + x.shape[2], 8:32].requires_grad_())
    empty_like = torch.empty_like
    monkeypatch.setattr(
        torch,
        "empty_like",
        lambda x, **kw: empty_like(x, **kw).fill_(torch.nan) if x.is_floating_point() else empty_like(x, **kw),
    )
    out = triton_attention(*surrounded, case.plan)
    assert torch.equal(out[0], wanted[0])
    assert torch.equal(out[1], wanted[1])
    for gradient in torch.autograd.grad(out[0].sum(), surrounded):
        assert not gradient.isnan().any()


def test_both_layouts_and_every_stride_without_copies(random_case):
    case = random_case(queries=20, keys=41, key_block=16)
    wanted = triton_attention(case.q.float(), case.k.float(), case.v.float(), case.plan)[0]
    q, k, v = (x.float().transpose(1, 2).contiguous().transpose(1, 2) for x in (case.q, case.k, case.v))
    out, _ = triton_attention(q, k, v, case.plan)
    assert torch.equal(out, wanted)
    # The output takes the layout of the queries.
    assert out.stride() == q.stride()
    # Keys and values of one fused projection.
    fused = torch.stack([k, v], dim=-2)
    assert torch.equal(triton_attention(q, fused[..., 0, :], fused[..., 1, :], case.plan)[0], wanted)


def test_equal_inputs_give_equal_bits(random_case):
    case = random_case(queries=20, keys=41, key_block=16)
    results = []
    for _ in range(2):
        inputs = [x.float().requires_grad_() for x in (case.q, case.k, case.v)]
        out, _ = triton_attention(*inputs, case.plan)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_one_plan_serves_all_heads(random_case):
    case = random_case(batch=2, heads=2, queries=16, keys=40, key_block=16)
    shared = PyramidPlan(case.plan.pools[:1, :1], 16, 40, 16, 16)
    repeated = PyramidPlan(case.plan.pools[:1, :1].expand(2, 2, -1, -1), 16, 40, 16, 16)
    q, k, v = (x.float() for x in (case.q, case.k, case.v))
    assert torch.equal(triton_attention(q, k, v, shared)[0], triton_attention(q, k, v, repeated)[0])


def test_offsets_beyond_32_bits():
    # Keys 2^27 elements apart: the last lies 2^32 elements in. The memory is reserved, not used.
    stride, keys = 1 << 27, 33
    q, small = torch.randn(1, 1, 16, 16, dtype=torch.float16), torch.randn(1, 1, keys, 16, dtype=torch.float16)
    try:
        region = mmap.mmap(
            -1,
            2 * (stride * (keys - 1) + 16),
            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000),
        )
    except OSError:
        pytest.skip("this machine reserves no 8 GiB of address space")
    far = torch.frombuffer(region, dtype=torch.float16).as_strided(small.shape, (0, 0, stride, 1))
    far.copy_(small)
    plan = full_plan(16, keys, query_block=16, key_block=16)
    assert torch.equal(triton_attention(q, far, far, plan)[0], triton_attention(q, small, small, plan)[0])


def test_the_pyramid_is_read_as_packed(random_case):
    # The kernel reads what `build_pyramid` packed, not something of its own.
    case = random_case(queries=16, keys=64, pools=(4,), heads=1)
    q, k, v = (x.float() for x in (case.q, case.k, case.v))
    pooled_keys = build_pyramid(k, 32)[:, :, 32:48]
    pooled_values = build_pyramid(v, 32)[:, :, 32:48]
    out, _ = triton_attention(q, k, v, case.plan)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, pooled_keys, pooled_values)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)


def _launch_with(monkeypatch: pytest.MonkeyPatch, tile: int, block_m: int) -> None:
    """Force tile sizes: the kernels must be right at every size, not only at the chosen ones."""
    from hiergen.kernels.pyramid_attention.triton import backward, forward

    launch = forward.LaunchConfig(tile, block_m, 4, 2)
    monkeypatch.setattr(forward.LaunchConfig, "choose", staticmethod(lambda *_: launch))
    monkeypatch.setattr(backward, "backward_launches", lambda *_: (launch, launch))
