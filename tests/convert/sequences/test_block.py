"""Block Transformer with official weights against a transcription of the specification in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hiergen.convert.sequences.block import from_official, published_heads, to_official
from hiergen.generators.sequences.block.model import BlockTransformer

V, L, D, E, HEADS, DEPTH = 19, 3, 48, 32, 2, 2
Weights = dict[str, Tensor]


def official(embedder: str = "lookup", token_decoder: str = "prefix", prefix_length: int = 2) -> Weights:
    """Random tensors under the official names, in which every one matters; with those that nothing reads."""
    model = BlockTransformer(
        vocab_size=V, block_length=L, dim=D, depth=DEPTH, num_heads=HEADS, token_dim=E, token_heads=HEADS, embedder_dim=8,
        embedder=embedder, token_decoder=token_decoder, prefix_length=prefix_length, first_block="context",
    )  # fmt: skip
    rng = torch.Generator().manual_seed(7)
    found = {
        name: torch.randn(t.shape, generator=rng) * 0.3 + (t.ndim == 1 and "layernorm" in name)
        for name, t in to_official(model).items()
    }
    found["block_decoder.gpt_neox.embed_in.weight"] = torch.randn(V, D, generator=rng)
    found["block_decoder.gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    return found


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def turn(x: Tensor, position: int) -> Tensor:
    """Rotate the first quarter of one head, channel i with i + r / 2."""
    r = len(x) // 4
    angle = torch.tensor([position * 10000 ** (-2 * i / r) for i in range(r // 2)], dtype=torch.float64)
    a, b = x[: r // 2], x[r // 2 : r]
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), x[r:]))


def neox(w: Weights, name: str, x: Tensor, positions: list[int]) -> Tensor:
    """A GPT-NeoX stack over one sequence, token by token and head by head."""
    for layer in range(DEPTH):
        p = f"{name}.layers.{layer}"
        fused = linear(w, f"{p}.attention.query_key_value", norm(w, f"{p}.input_layernorm", x))
        heads = fused.unflatten(-1, (HEADS, 3, -1))
        out = torch.zeros_like(x).unflatten(-1, (HEADS, -1))
        for h in range(HEADS):
            q, k = ([turn(heads[i, h, part], positions[i]) for i in range(len(x))] for part in (0, 1))
            for i in range(len(x)):
                scores = torch.stack([q[i] @ k[j] for j in range(i + 1)]) / math.sqrt(len(q[i]))
                out[i, h] = scores.softmax(0) @ heads[: i + 1, h, 2]
        hidden = linear(w, f"{p}.mlp.dense_h_to_4h", norm(w, f"{p}.post_attention_layernorm", x))
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + linear(w, f"{p}.attention.dense", out.flatten(1)) + linear(w, f"{p}.mlp.dense_4h_to_h", hidden)
    return norm(w, f"{name}.final_layer_norm", x)


def plain_logits(w: Weights, ids: list[int], token_decoder: str, shared_position: bool = False) -> Tensor:
    """Logits of blocks 1 to n - 1 of whole blocks, `(n - 1, L, V)`."""
    blocks = [ids[i : i + L] for i in range(0, len(ids), L)]
    vectors = []
    for block in blocks:
        rows = [w["embedder.embeddings.weight"][token] for token in block]
        if "embedder.projection_layer.weight" in w:
            kernel = w["embedder.projection_layer.weight"]
            vectors.append(w["embedder.projection_layer.bias"] + sum(kernel[:, :, t] @ rows[t] for t in range(L)))
        else:
            vectors.append(torch.cat(rows))
    context = neox(w, "block_decoder.gpt_neox", torch.stack(vectors), list(range(len(blocks))))
    found = []
    for index in range(len(blocks) - 1):
        expanded = w["token_decoder.expansion_layer.weight"][..., 0] @ context[index]
        p = (expanded + w["token_decoder.expansion_layer.bias"]).unflatten(0, (-1, E))
        table, block = w["token_decoder.gpt_neox.embed_in.weight"], blocks[index + 1]
        if token_decoder == "prefix":
            x = torch.cat((p, table[block[:-1]]))
        else:
            x = table[[0, *block[:-1]]] + p
        first = len(p) - 1 if shared_position else 0
        out = neox(w, "token_decoder.gpt_neox", x, [max(i - first, 0) for i in range(len(x))])
        found.append(out[-L:] @ w["token_decoder.embed_out.weight"].T)
    return torch.stack(found)


CASES = [
    ("lookup", "prefix", 2),
    ("lookup", "prefix", 1),
    ("lookup_projection", "prefix", 2),
    ("lookup", "summation", 1),
]


@pytest.mark.parametrize(("embedder", "token_decoder", "prefix_length"), CASES)
def test_logits_of_official_weights(embedder: str, token_decoder: str, prefix_length: int) -> None:
    weights = official(embedder, token_decoder, prefix_length)
    model = from_official(weights, {"num_heads": HEADS, "token_heads": HEADS}).double()
    ids = torch.randint(V, (1, 12), generator=torch.Generator().manual_seed(1))
    wanted = plain_logits({name: t.double() for name, t in weights.items()}, ids[0].tolist(), token_decoder)
    with torch.no_grad():
        logits = model(ids)[0]
    # Rotary tables are float32 in the library.
    torch.testing.assert_close(logits[L - 1 : -1], wanted.flatten(0, 1), atol=2e-6, rtol=2e-6)


def test_official_generation_numbers_the_prefix_alike() -> None:
    weights = official()
    config = {"num_heads": HEADS, "token_heads": HEADS, "generation_positions": "official"}
    model, ids = from_official(weights, config).double(), [3, 1, 4, 1, 5, 9, 2, 6, 5]
    cache, rows = model.start_cache(1, len(ids)), torch.tensor([ids])
    steps = [model.prefill(rows[:, :L], None, cache), *(model.step(rows[:, t], cache) for t in range(L, len(ids) - 1))]
    wanted = plain_logits({name: t.double() for name, t in weights.items()}, ids, "prefix", shared_position=True)
    torch.testing.assert_close(torch.cat(steps), wanted.flatten(0, 1), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize(("embedder", "token_decoder", "prefix_length"), CASES)
def test_there_and_back(embedder: str, token_decoder: str, prefix_length: int) -> None:
    weights = official(embedder, token_decoder, prefix_length)
    back = to_official(from_official({"model": weights}, {"num_heads": HEADS, "token_heads": HEADS}))
    read = {
        name for name in weights if not name.endswith((".attention.bias", "block_decoder.gpt_neox.embed_in.weight"))
    }
    assert set(back) == read
    assert all(torch.equal(back[name], weights[name]) for name in read)


def test_published_heads() -> None:
    assert [published_heads(dim) for dim in (128, 256, 512, 768, 1024, 2048)] == [4, 8, 8, 12, 16, 16]


def test_what_does_not_fit_is_named() -> None:
    heads = {"num_heads": HEADS, "token_heads": HEADS}
    cases: list[tuple[str, Any]] = [
        ("lacks tensor 'token_decoder.expansion_layer.weight'", {"token_decoder.expansion_layer.weight": None}),
        ("lacks tensor 'block_decoder.gpt_neox.layers.1.mlp.dense_h_to_4h.bias'", {"block_decoder.gpt_neox.layers.1.mlp.dense_h_to_4h.bias": None}),
        ("1 tensors that BlockTransformer has not: more", {"more": torch.ones(2)}),
        (r"'token_decoder.embed_out.weight' has shape \(2, 2\)", {"token_decoder.embed_out.weight": torch.ones(2, 2)}),
    ]  # fmt: skip
    for match, changes in cases:
        weights = {name: tensor for name, tensor in {**official(), **changes}.items() if tensor is not None}
        with pytest.raises(ValueError, match=match):
            from_official(weights, heads)
    sizes = {
        **dict.fromkeys(("dim", "token_dim"), 32),
        "depth": 1,
        "num_heads": 2,
        "embedder_dim": 8,
        "embedder_heads": 2,
    }
    with pytest.raises(ValueError, match="is of no published model, expected an embedder that looks up"):
        to_official(BlockTransformer(**sizes, embedder="roberta"))
