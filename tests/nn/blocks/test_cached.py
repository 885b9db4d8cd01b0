from __future__ import annotations

import pytest
import torch

from hiergen.nn.blocks.cached import CachedAttention, CachedBlock
from hiergen.nn.cache import LayerCache
from hiergen.nn.level_masks import BlockCausalMask
from hiergen.nn.positions import rotary_table


def test_groups_through_a_cache_equal_the_masked_pass() -> None:
    mask = BlockCausalMask((1, 1, 2, 4))
    block = CachedBlock(16, 2, 24).double()
    x = torch.randn(3, 8, 16, dtype=torch.float64)
    rotary = rotary_table(torch.arange(8.0)[:, None], 8)
    whole = block(x, rotary, mask=mask.dense())
    cache = LayerCache(8)
    parts = [block(x[:, a:z], rotary[:, a:z], cache=cache) for a, z in mask.spans()]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-12, atol=1e-12)


def test_dropout_only_in_train_mode() -> None:
    block = CachedBlock(16, 2, 24, attention_dropout=1.0, ffn_dropout=1.0)
    x, rotary = torch.randn(1, 4, 16), rotary_table(torch.arange(4.0)[:, None], 8)
    assert torch.equal(block(x, rotary), x)
    assert not torch.equal(block.eval()(x, rotary), x)


def test_heads_must_hold_whole_pairs() -> None:
    with pytest.raises(ValueError, match="dim is 12, expected a multiple of 2 \\* num_heads = 8"):
        CachedAttention(12, 4)
