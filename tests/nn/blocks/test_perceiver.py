"""The blocks of the shape VAE: embedding, head layout, cached keys, initialization."""

from __future__ import annotations

import math

import torch
from torch import nn

from hiergen.nn.blocks.perceiver import (
    CrossBlock,
    InterleavedAttention,
    SelfStack,
    fourier_dim,
    fourier_embedding,
    init_perceiver,
)


def test_embedding_of_a_point_by_hand() -> None:
    point = torch.tensor([[[0.1, -0.2, 0.3]]], dtype=torch.float64)
    angles = [0.1, 0.2, -0.2, -0.4, 0.3, 0.6]
    expected = [0.1, -0.2, 0.3, *map(math.sin, angles), *map(math.cos, angles)]
    torch.testing.assert_close(fourier_embedding(point, 2)[0, 0].tolist(), expected, rtol=1e-15, atol=1e-15)
    scaled = fourier_embedding(point, 2, include_pi=True)[0, 0]
    torch.testing.assert_close(scaled[3:].tolist(), [f(math.pi * a) for f in (math.sin, math.cos) for a in angles])
    assert scaled.numel() == fourier_dim(2) == 15
    assert fourier_embedding(point.half(), 8).dtype == torch.float32


def test_heads_are_interleaved_in_the_fused_projection() -> None:
    """Sorting the interleaved rows into [all q | all k | all v] must give PyTorch's own multi-head attention."""
    width, heads, head_dim = 12, 3, 4
    ours = InterleavedAttention(width, heads).double()
    theirs = nn.MultiheadAttention(width, heads, batch_first=True, dtype=torch.float64)
    rows = [h * 3 * head_dim + c * head_dim + k for c in range(3) for h in range(heads) for k in range(head_dim)]
    nn.init.normal_(ours.query_key_value.bias)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.query_key_value.weight[rows])
        theirs.in_proj_bias.copy_(ours.query_key_value.bias[rows])
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    x = torch.randn(2, 5, width, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0], rtol=1e-12, atol=1e-12)


def test_change_is_what_forward_adds() -> None:
    block = CrossBlock(8, 2).double()
    x, data = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(2, 7, 8, dtype=torch.float64)
    key_value = block.project_data(data)
    assert key_value[0].shape == (2, 2, 7, 4)
    torch.testing.assert_close(x + block.change(x, key_value), block(x, key_value), rtol=1e-12, atol=1e-12)


def test_blocks_start_small_and_other_layers_as_pytorch_does() -> None:
    model = nn.ModuleDict({"stack": SelfStack(2, 64, 4), "other": nn.Linear(64, 64)})
    before = model["other"].weight.clone()
    init_perceiver(model, std=0.03)
    assert torch.equal(model["other"].weight, before)
    for block in model["stack"].blocks:
        for layer in (block.attention.query_key_value, block.attention.output, block.mlp.up, block.mlp.down):
            assert abs(layer.weight.std().item() / 0.03 - 1) < 0.05
            assert not layer.bias.any()
