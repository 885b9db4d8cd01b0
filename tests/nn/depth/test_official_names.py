"""Weights under the names of the official ladder program, in our blocks: what a plain transcription of that program computes.

Ladder-residual, arXiv:2501.06589: `layers.i.attention.wqkv` stacks [q; k; v], `feed_forward.w1` stacks [up; gate], up first, and positions
turn adjacent pairs.
"""

import pytest
import torch
import torch.nn.functional as F

from hiergen.nn.blocks.cached import CachedBlock
from hiergen.nn.depth.plan import ladder
from hiergen.nn.depth.stack import BlockStack
from hiergen.nn.positions import rotary_table

DIM, HEADS, HIDDEN, TOKENS, LAYERS = 16, 2, 24, 5, 4


def official_weights() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    shapes = {
        "attention_norm.weight": (DIM,),
        "attention.wqkv.weight": (3 * DIM, DIM),
        "attention.wo.weight": (DIM, DIM),
        "ffn_norm.weight": (DIM,),
        "feed_forward.w1.weight": (2 * HIDDEN, DIM),
        "feed_forward.w2.weight": (DIM, HIDDEN),
    }
    return {
        f"layers.{layer}.{name}": 0.3 * torch.randn(shape, generator=rng, dtype=torch.float64) + (len(shape) == 1)
        for layer in range(LAYERS)
        for name, shape in shapes.items()
    }


def from_official(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state of a plain `BlockStack` of `CachedBlock`s."""
    names = {"attention.wqkv": "attention.qkv", "attention.wo": "attention.out", "feed_forward.w2": "ffn.down"}
    found = {}
    for name, value in state.items():
        _, layer, rest = name.split(".", 2)
        if rest.startswith("feed_forward.w1"):
            found[f"{layer}.ffn.up.weight"], found[f"{layer}.ffn.gate.weight"] = value.chunk(2)
            continue
        stem = rest.removesuffix(".weight")
        found[f"{layer}.{names.get(stem, stem)}.weight"] = value
    return found


def transcription(state: dict[str, torch.Tensor], x: torch.Tensor, laddered: range) -> torch.Tensor:
    """Return the stream behind all layers; those that are laddered read it without the branch just before."""
    angles = torch.arange(TOKENS, dtype=torch.float64)[:, None] * 10000 ** (
        -torch.arange(0, DIM // HEADS, 2, dtype=torch.float64) / (DIM // HEADS)
    )

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight

    def turn(heads: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(heads.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)

    def attend(layer: int, x: torch.Tensor) -> torch.Tensor:
        w = {name.split(".", 2)[2]: value for name, value in state.items() if name.startswith(f"layers.{layer}.")}
        q, k, v = (norm(x, w["attention_norm.weight"]) @ w["attention.wqkv.weight"].T).split(DIM, -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
        scores = (turn(q) @ turn(k).mT / (DIM // HEADS) ** 0.5).softmax(-1)
        return (scores @ v).transpose(1, 2).flatten(2) @ w["attention.wo.weight"].T

    def feed(layer: int, x: torch.Tensor) -> torch.Tensor:
        w = {name.split(".", 2)[2]: value for name, value in state.items() if name.startswith(f"layers.{layer}.")}
        up, gate = (norm(x, w["ffn_norm.weight"]) @ w["feed_forward.w1.weight"].T).chunk(2, -1)
        return (up * F.silu(gate)) @ w["feed_forward.w2.weight"].T

    stream, late = x, torch.zeros_like(x)
    for layer in range(LAYERS):
        for branch in (attend, feed):
            if layer in laddered:
                out = branch(layer, stream)
                stream, late = stream + late, out
            else:
                stream = stream + late
                late = branch(layer, stream)
    return stream + late


@pytest.mark.parametrize("last", [0, 2, 4])
def test_official_weights_give_what_a_transcription_gives(last: int) -> None:
    state = official_weights()
    stack = BlockStack([CachedBlock(DIM, HEADS, HIDDEN) for _ in range(LAYERS)], ladder(LAYERS, last=last).to_json())
    stack.double().load_state_dict(from_official(state))
    x = torch.randn(2, TOKENS, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rotary = rotary_table(torch.arange(TOKENS, dtype=torch.float64)[:, None], DIM // HEADS).double()
    expected = transcription(state, x, range(LAYERS - last, LAYERS))
    torch.testing.assert_close(stack(x, rotary), expected, rtol=0, atol=1e-6)
