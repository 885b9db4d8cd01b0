from __future__ import annotations

import pytest
import torch
from torch import nn

from hiergen.nn.blocks.layers import FusedSwiGLU, GeluMLP, RMSNorm, SelfAttention, SwiGLU, make_feed_forward, swiglu_dim


def test_swiglu_dim_of_every_published_size() -> None:
    # 8/3 of 768 is 2048, of 1024 it is 2730.7, of 1280 3413.3, of 1536 4096, of 2560 6826.7.
    assert [swiglu_dim(dim) for dim in (768, 1024, 1280, 1536, 2560)] == [2048, 2816, 3584, 4096, 6912]
    assert swiglu_dim(96, 32) == 256


def test_rms_norm_by_hand_and_in_low_precision() -> None:
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    norm = RMSNorm(8).double()
    torch.nn.init.normal_(norm.weight)
    wanted = x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), wanted, rtol=1e-12, atol=1e-12)
    # The square of 300 overflows float16: only a float32 mean survives.
    large = torch.full((1, 4), 300.0, dtype=torch.float16)
    assert torch.equal(RMSNorm(4).half()(large), torch.ones(1, 4, dtype=torch.float16))


def test_both_forms_of_swiglu_agree() -> None:
    apart, fused = SwiGLU(6, 10).double(), FusedSwiGLU(6, 10).double()
    nn.init.zeros_(fused.w12.bias), nn.init.zeros_(fused.w3.bias)
    with torch.no_grad():
        fused.w12.weight.copy_(torch.cat((apart.gate.weight, apart.up.weight)))
        fused.w3.weight.copy_(apart.down.weight)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(apart(x), fused(x), rtol=1e-12, atol=1e-12)


def test_gelu_is_exact_or_approximated_as_asked() -> None:
    exact, rough = GeluMLP(4, 8).double(), GeluMLP(4, 8, approximate="tanh").double()
    rough.load_state_dict(exact.state_dict())
    x = torch.randn(2, 4, dtype=torch.float64)
    hidden = x @ exact.fc1.weight.T + exact.fc1.bias
    wanted = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5)) @ exact.fc2.weight.T + exact.fc2.bias
    torch.testing.assert_close(exact(x), wanted, rtol=1e-12, atol=1e-12)
    assert 1e-6 < (rough(x) - wanted).abs().max() < 1e-2
    assert make_feed_forward("gelu", 4, 2.0).approximate == "tanh"


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="num_heads is 3, expected a divisor of dim 8"):
        SelfAttention(8, 3)
