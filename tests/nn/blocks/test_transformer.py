from __future__ import annotations

import pytest
import torch

from hiergen.nn.blocks.transformer import EncoderBlock


def test_block_is_the_pre_norm_encoder_layer_of_torch() -> None:
    ours = EncoderBlock(24, 3, norm_eps=1e-5).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.3)
    theirs = torch.nn.TransformerEncoderLayer(
        24, 3, 96, dropout=0.0, activation="gelu", layer_norm_eps=1e-5, batch_first=True, norm_first=True
    ).double()
    names = {
        "self_attn.in_proj_": "attn.qkv.",
        "self_attn.out_proj": "attn.proj",
        "linear": "mlp.fc",
    }
    state = {}
    for name in theirs.state_dict():
        official = name
        for theirs_start, ours_start in names.items():
            official = official.replace(theirs_start, ours_start)
        state[name] = ours.state_dict()[official]
    theirs.load_state_dict(state)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


def test_epsilon_of_the_norms_is_the_configured_one() -> None:
    small, large = EncoderBlock(8, 2, norm_eps=1e-6), EncoderBlock(8, 2, norm_eps=1e-5)
    large.load_state_dict(small.state_dict())
    x = 1e-2 * torch.randn(1, 4, 8)
    assert not torch.allclose(small(x), large(x), rtol=1e-6)


def test_dropout_acts_in_train_mode_only() -> None:
    block = EncoderBlock(8, 2, attention_dropout=0.5, dropout=0.5)
    x = torch.randn(1, 6, 8)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="num_heads is 3, expected a divisor of dim 8"):
        EncoderBlock(8, 3)
