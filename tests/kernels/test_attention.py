from __future__ import annotations

import pytest
import torch

from hiergen.kernels.attention import attention


@pytest.mark.parametrize("scale", [None, 0.25, 3.0])
def test_both_backends_scale_alike(scale: float | None) -> None:
    query, key, value = torch.randn(3, 2, 4, 5, 6, dtype=torch.float64)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    fused = attention(query, key, value, mask=mask, scale=scale)
    torch.testing.assert_close(fused, attention(query, key, value, mask=mask, scale=scale, backend="reference"))
    scores = query @ key.mT * (6**-0.5 if scale is None else scale)
    torch.testing.assert_close(fused, scores.masked_fill(~mask, -torch.inf).softmax(dim=-1) @ value)
