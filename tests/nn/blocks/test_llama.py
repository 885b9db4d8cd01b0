from __future__ import annotations

import pytest
import torch

from hiergen.nn.blocks.llama import LlamaAttention, LlamaBlock, RMSNorm, swiglu_dim
from hiergen.nn.cache import LayerCache
from hiergen.nn.level_masks import BlockCausalMask
from hiergen.nn.positions import rotary_table


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


def test_groups_through_a_cache_equal_the_masked_pass() -> None:
    mask = BlockCausalMask((1, 1, 2, 4))
    block = LlamaBlock(16, 2, 24).double()
    x = torch.randn(3, 8, 16, dtype=torch.float64)
    rotary = rotary_table(torch.arange(8.0)[:, None], 8)
    whole = block(x, rotary, mask=mask.dense())
    cache = LayerCache(8)
    parts = [block(x[:, a:z], rotary[:, a:z], cache=cache) for a, z in mask.spans()]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-12, atol=1e-12)


def test_dropout_only_in_train_mode() -> None:
    block = LlamaBlock(16, 2, 24, attention_dropout=1.0, ffn_dropout=1.0)
    x, rotary = torch.randn(1, 4, 16), rotary_table(torch.arange(4.0)[:, None], 8)
    assert torch.equal(block(x, rotary), x)
    assert not torch.equal(block.eval()(x, rotary), x)


def test_heads_must_hold_whole_pairs() -> None:
    with pytest.raises(ValueError, match="dim is 12, expected a multiple of 2 \\* num_heads = 8"):
        LlamaAttention(12, 4)
