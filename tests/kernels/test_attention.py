from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hiergen.kernels.attention import attention


@pytest.mark.parametrize("scale", [None, 0.25, 3.0])
def test_both_backends_scale_alike(scale: float | None) -> None:
    query, key, value = torch.randn(3, 2, 4, 5, 6, dtype=torch.float64)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    fused = attention(query, key, value, mask=mask, scale=scale)
    torch.testing.assert_close(fused, attention(query, key, value, mask=mask, scale=scale, backend="reference"))
    scores = query @ key.mT * (6**-0.5 if scale is None else scale)
    torch.testing.assert_close(fused, scores.masked_fill(~mask, -torch.inf).softmax(dim=-1) @ value)


def draw(length: int, dtype: torch.dtype, *, trains: bool) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, length, 8, generator=rng).to(dtype).requires_grad_(trains) for _ in range(3)]


@pytest.mark.parametrize(
    ("length", "dtype", "trains", "has_amx", "is_fused"),
    [
        (16, torch.bfloat16, True, True, False),
        (16, torch.bfloat16, False, False, False),
        (16, torch.bfloat16, False, True, True),
        (513, torch.bfloat16, True, False, True),
        (16, torch.float32, True, False, True),
    ],
)
def test_short_sequences_in_bfloat16_on_a_cpu_take_the_plain_formula(
    monkeypatch, length, dtype, trains, has_amx, is_fused
) -> None:
    calls = []
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k))
    query, key, value = draw(length, dtype, trains=trains)
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    made = attention(query, key, value, mask=mask)
    assert bool(calls) == is_fused
    with torch.no_grad():
        attention(query, key, value, mask=mask)
    assert len(calls) == is_fused + (is_fused or has_amx)
    exact = attention(*(x.double() for x in (query, key, value)), mask=mask, backend="reference")
    assert float((made - exact).detach().abs().max()) < (0.1 if dtype == torch.bfloat16 else 1e-5)
    with pytest.raises(
        ValueError,
        match="backend is 'fast', expected 'auto' or one of 'sdpa', 'grouped', 'reference', 'flex', 'xformers', 'hub' for attention",
    ):
        attention(query, key, value, backend="fast")
