from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hiergen.nn.blocks.vit import ViTAttention, ViTBlock
from hiergen.nn.level_masks import BlockCausalMask
from hiergen.nn.positions import grid_positions, rotary_table

POSITIONS = grid_positions(2, 3)


def random_block() -> ViTBlock:
    block = ViTBlock(16, 2, 24).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return block


def plain_block(block: ViTBlock, x: Tensor, allowed: Tensor) -> Tensor:
    """Return the block's output for one sequence `(n, d)`, head by head and pair by pair."""
    w = dict(block.named_parameters())

    def norm(t: Tensor, name: str) -> Tensor:
        t = t - t.mean(-1, keepdim=True)
        return t / (t.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def rotate(t: Tensor, position: Tensor) -> Tensor:
        out = t.clone()
        for m in range(4):
            angle = float(position[0 if m < 2 else 1]) * 10000.0 ** (-2 * (m % 2) / 4)
            out[2 * m] = t[2 * m] * math.cos(angle) - t[2 * m + 1] * math.sin(angle)
            out[2 * m + 1] = t[2 * m] * math.sin(angle) + t[2 * m + 1] * math.cos(angle)
        return out

    q, k, v = (norm(x, "norm1") @ w["attention.qkv.weight"].T).chunk(3, dim=1)
    q, v = q + w["attention.query_bias"], v + w["attention.value_bias"]
    heads = []
    for part in (slice(0, 8), slice(8, 16)):
        qh = torch.stack(
            [rotate(norm(t, "attention.query_norm"), p) for t, p in zip(q[:, part], POSITIONS, strict=True)]
        )
        kh = torch.stack([rotate(norm(t, "attention.key_norm"), p) for t, p in zip(k[:, part], POSITIONS, strict=True)])
        scores = (qh @ kh.T / math.sqrt(8)).masked_fill(~allowed, -math.inf)
        heads.append(scores.softmax(-1) @ v[:, part])
    x = x + w["scale1"] * (torch.cat(heads, 1) @ w["attention.out.weight"].T + w["attention.out.bias"])
    hidden = norm(x, "norm2") @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return x + w["scale2"] * (hidden @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"])


@pytest.mark.parametrize("sizes", [(6,), (1, 2, 3)])
def test_block_against_loops(sizes: tuple[int, ...]) -> None:
    block, x = random_block(), torch.randn(2, 6, 16, dtype=torch.float64)
    mask = BlockCausalMask(sizes).dense()
    result = block(x, rotary_table(POSITIONS, 8), mask if len(sizes) > 1 else None)
    for sample, sequence in zip(result, x, strict=True):
        # The rotary table is float32.
        torch.testing.assert_close(sample, plain_block(block, sequence, mask), rtol=1e-6, atol=1e-6)


def test_between_runs_after_attention_and_before_the_mlp() -> None:
    block, x = random_block(), torch.randn(1, 6, 16, dtype=torch.float64)
    rotary, seen = rotary_table(POSITIONS, 8), []

    def between(tokens: Tensor) -> Tensor:
        seen.append(tokens)
        return tokens[:, :2]

    result = block(x, rotary, None, between)
    after = x + block.scale1 * block.attention(block.norm1(x), rotary)
    assert torch.equal(seen[0], after)
    torch.testing.assert_close(result, (after + block.scale2 * block.mlp(block.norm2(after)))[:, :2])


def test_scales_start_at_one_and_biases_at_zero() -> None:
    block = ViTBlock(16, 2, 24)
    assert block.scale1.tolist() == block.scale2.tolist() == [1.0] * 16
    assert block.attention.query_bias.tolist() == block.attention.value_bias.tolist() == [0.0] * 16
    assert "attention.key_bias" not in block.state_dict()


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="dim is 16, expected a multiple of num_heads, 3"):
        ViTAttention(16, 3)
