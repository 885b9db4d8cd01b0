"""FlexAttention as a second witness: against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from hiergen.kernels.pyramid_attention.backends.flex import flex_attention, merge
from hiergen.kernels.pyramid_attention.backends.reference import reference_attention


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"key_block": 64, "keys": 100},
        {"is_causal": True, "key_offset": 50, "key_block": 16},
        {"masked": True, "batch": 2},
        {"tail": "replicate", "keys": 70},
        {"pools": (0,)},
    ],
)
def test_flex_attention_agrees(settings, random_case):
    case = random_case(**settings)
    inputs = [x.float() for x in (case.q, case.k, case.v)]
    out, lse = flex_attention(*inputs, case.plan, key_mask=case.key_mask)
    wanted, wanted_lse = reference_attention(case.q, case.k, case.v, case.plan, key_mask=case.key_mask)
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=3e-6)
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=0, atol=3e-6)


def test_merging_parts_is_attention_over_all():
    scores, values = torch.randn(3, 12, dtype=torch.float64), torch.randn(12, 4, dtype=torch.float64)
    spans = [slice(0, 5), slice(5, 6), slice(6, 12)]
    outputs = [scores[:, s].softmax(-1) @ values[s] for s in spans]
    out, lse = merge(
        [*outputs, torch.full((3, 4), torch.nan).double()],
        [*(scores[:, s].logsumexp(-1) for s in spans), torch.full((3,), -torch.inf).double()],
    )
    torch.testing.assert_close(out, scores.softmax(-1) @ values)
    torch.testing.assert_close(lse, scores.logsumexp(-1))
