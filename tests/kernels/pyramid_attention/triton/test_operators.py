"""The operators through the interpreter: how PyTorch sees them, and the fused preparation against the plain one."""

from __future__ import annotations

import pytest
import torch

from hiergen.kernels.pyramid_attention.plan import PyramidPlan
from hiergen.kernels.pyramid_attention.planning.lists import sorted_lists, with_lists
from hiergen.kernels.pyramid_attention.pooling import build_pyramid, similarity_cap
from hiergen.kernels.pyramid_attention.triton.availability import runs_triton, triton_problem
from hiergen.kernels.pyramid_attention.triton.operators import key_pyramid, plan_lists_op, pyramid_attention_op

pytest.importorskip("triton")


@pytest.mark.parametrize(("keys", "key_block", "tail"), [(100, 32, "exact"), (41, 16, "replicate"), (64, 64, "exact")])
def test_the_pyramid_and_its_gradient(keys, key_block, tail):
    # Channels-last strides, as they come from a projection.
    k, v = (torch.randn(2, keys, 3, 24).transpose(1, 2).requires_grad_() for _ in range(2))
    ours = key_pyramid(k, v, key_block, tail=tail).pooled
    wide = [x.double() for x in (k, v)]
    plain = torch.stack([build_pyramid(x, key_block, tail=tail) for x in wide])
    torch.testing.assert_close(ours.double(), plain, rtol=1e-6, atol=1e-6)
    weight = torch.randn_like(ours)
    wanted = torch.autograd.grad((plain * weight).sum(), (k, v))
    for x, y in zip(torch.autograd.grad((ours * weight).sum(), (k, v)), wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("keys", "key_block", "tail"), [(100, 32, "exact"), (41, 16, "replicate"), (64, 64, "exact")])
def test_the_similarity_cap_comes_with_the_pyramid(keys, key_block, tail):
    # A walk: neighbors are alike, more or less, so that every pool is borne somewhere.
    k = torch.randn(2, 3, keys, 24).cumsum(2).requires_grad_()
    pyramid = key_pyramid(k, k, key_block, tail=tail, with_cosines=True)
    found = set()
    for thresholds in ((0.9, 0.8, 0.5), (0.7, 0.65, 0.6), (-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)):
        wanted = similarity_cap(k.detach(), key_block, thresholds)
        assert torch.equal(pyramid.similarity_cap(key_block, thresholds), wanted)
        found |= set(wanted.flatten().tolist())
    assert {1, 8} <= found
    assert not pyramid.cosines.requires_grad
    torch.autograd.grad(pyramid.pooled.sum(), k)
    with pytest.raises(ValueError, match="built without cosines"):
        key_pyramid(k, k, key_block, tail=tail).similarity_cap(key_block, (0.5, 0.5, 0.5))


def test_half_precision_is_averaged_in_single():
    k = torch.tensor([2048.0] + [1.0] * 7, dtype=torch.float16)[None, None, :, None].expand(1, 1, 8, 16)
    assert key_pyramid(k, k, 8, tail="exact").pooled[0, 0, 0, -1, 0].item() == pytest.approx((2048 + 7) / 8, rel=1e-3)


@pytest.mark.parametrize(("is_causal", "key_offset"), [(False, 0), (True, 35)])
def test_lists_equal_sorting(is_causal, key_offset):
    pools = torch.tensor([0, 1, 2, 4, 8], dtype=torch.uint8)[torch.randint(0, 5, (2, 2, 5, 7))]
    plan = PyramidPlan(pools, 70, 105, 16, 16, is_causal, key_offset)
    ids, counts = plan_lists_op(pools, 105, 16, 16, is_causal, key_offset)
    wanted_ids, wanted_counts = sorted_lists(plan)
    assert torch.equal(ids, wanted_ids)
    assert torch.equal(counts, wanted_counts)


def test_why_triton_cannot_run():
    assert triton_problem("mps", -1) == "the inputs are on mps"
    if not torch.cuda.is_available():
        assert triton_problem("cpu", -1) is None
    assert not runs_triton(torch.device("cpu"))


def test_operators_are_registered_as_pytorch_wants(random_case):
    case = random_case(queries=16, keys=20, key_block=16, heads=1, pools=(1, 2))
    plan = with_lists(case.plan)
    inputs = [x.float().requires_grad_() for x in (case.q, case.k, case.v)]
    pooled = torch.stack([build_pyramid(x.detach(), 16) for x in inputs[1:]]).requires_grad_()
    lists = (plan.pools, plan.lists.ids, plan.lists.counts, plan.lists.order)
    torch.library.opcheck(
        pyramid_attention_op,
        (*inputs, pooled, None, *lists, 16, 16, False, 0, 20, 0.25),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )
