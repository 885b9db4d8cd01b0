"""`LevelAR` with official weights against a transcription of the specification in plain float64 loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hiergen.convert.level_ar import from_official, to_official
from hiergen.generators.level_ar.settings import LevelARSettings

VOCAB, CLASSES, DIM, HEADS, DEPTH, HIDDEN = 23, 5, 32, 4, 2, 48


def official_weights(num_special: int, *, depth: int = DEPTH) -> dict[str, Tensor]:
    """Random tensors under the official names, scaled so that every term of the model matters."""
    shapes = {
        "cls_embedding.embedding_table.weight": (CLASSES + 1, DIM),
        "tok_embeddings.weight": (VOCAB, DIM),
        "norm.weight": (DIM,),
        "output.weight": (VOCAB, DIM),
    }
    if num_special:
        shapes["spe_tok_embeddings.special_embeddings.weight"] = (num_special, DIM)
    for layer in range(depth):
        shapes |= {
            f"layers.{layer}.attention.wqkv.weight": (3 * DIM, DIM),
            f"layers.{layer}.attention.wo.weight": (DIM, DIM),
            f"layers.{layer}.feed_forward.w1.weight": (HIDDEN, DIM),
            f"layers.{layer}.feed_forward.w3.weight": (HIDDEN, DIM),
            f"layers.{layer}.feed_forward.w2.weight": (DIM, HIDDEN),
            f"layers.{layer}.attention_norm.weight": (DIM,),
            f"layers.{layer}.ffn_norm.weight": (DIM,),
        }
    rng = torch.Generator().manual_seed(7)
    draws = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    return {name: 1 + 0.3 * x if x.ndim == 1 else x * x.shape[1] ** -0.5 for name, x in draws.items()}


def plain_input(
    weights: dict[str, Tensor], ids: list[int], label: int, num_ar: int | None, p: int
) -> tuple[Tensor, int]:
    """What stands at input position p and the number of its group. `num_ar` None is token by token."""
    tokens = weights["tok_embeddings.weight"]
    if p == 0:
        return weights["cls_embedding.embedding_table.weight"][label], 0
    if num_ar is None or p < num_ar:
        return tokens[ids[p - 1]], p
    special = weights["spe_tok_embeddings.special_embeddings.weight"]
    n, group = num_ar, num_ar
    while p >= 2 * n:
        n, group = 2 * n, group + 1
    first, count = (num_ar - 1, 1) if n == num_ar else (n // 2, n // 2)
    offset = p - n
    if offset < count:
        return tokens[ids[first + offset]], group
    return special[(0 if n == num_ar else n // 2 - 1) + offset - count], group


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / math.sqrt(sum(float(v) ** 2 for v in x) / len(x) + 1e-5) * weight


def plain_rotate(x: Tensor, position: int) -> Tensor:
    turned = torch.empty_like(x)
    for pair in range(len(x) // 2):
        angle = position * 10000.0 ** (-2 * pair / len(x))
        # Tables of cosines and sines are float32 by specification.
        cos, sin = (float(torch.tensor(value, dtype=torch.float32)) for value in (math.cos(angle), math.sin(angle)))
        u, v = x[2 * pair], x[2 * pair + 1]
        turned[2 * pair], turned[2 * pair + 1] = u * cos - v * sin, u * sin + v * cos
    return turned


def plain_logits(
    weights: dict[str, Tensor], ids: list[int], label: int, num_ar: int | None, length: int, *, depth: int = DEPTH
) -> Tensor:
    """Logits `(length, VOCAB)` of the first positions; only ids of earlier groups are read."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    embedded = [plain_input(w, ids, label, num_ar, p) for p in range(length)]
    xs, groups = [x for x, _ in embedded], [group for _, group in embedded]
    head_dim = DIM // HEADS
    for layer in range(depth):
        part = {name.removeprefix(f"layers.{layer}."): tensor for name, tensor in w.items()}
        qkv = [part["attention.wqkv.weight"] @ plain_norm(x, part["attention_norm.weight"]) for x in xs]
        attended = [torch.zeros(DIM, dtype=torch.float64) for _ in xs]
        for head in range(HEADS):
            rows = slice(head * head_dim, (head + 1) * head_dim)
            queries = [plain_rotate(row[:DIM][rows], p) for p, row in enumerate(qkv)]
            keys = [plain_rotate(row[DIM : 2 * DIM][rows], p) for p, row in enumerate(qkv)]
            for q in range(length):
                seen = [k for k in range(length) if groups[k] <= groups[q]]
                scores = torch.stack([queries[q] @ keys[k] for k in seen]) / math.sqrt(head_dim)
                for share, k in zip(scores.softmax(0), seen, strict=True):
                    attended[q][rows] += share * qkv[k][2 * DIM :][rows]
        xs = [x + part["attention.wo.weight"] @ a for x, a in zip(xs, attended, strict=True)]
        for p, x in enumerate(xs):
            y = plain_norm(x, part["ffn_norm.weight"])
            gate, up = part["feed_forward.w1.weight"] @ y, part["feed_forward.w3.weight"] @ y
            xs[p] = x + part["feed_forward.w2.weight"] @ (gate / (1 + (-gate).exp()) * up)
    return torch.stack([w["output.weight"] @ plain_norm(x, w["norm.weight"]) for x in xs])


def plain_greedy(weights: dict[str, Tensor], label: int, num_ar: int | None, length: int, *, scale: float) -> list[int]:
    """Greedy ids with constant guidance, each step from scratch."""
    ids: list[int] = []
    while len(ids) < length:
        end = len(ids) + 1 if num_ar is None or len(ids) < num_ar else 2 * len(ids)
        conditional, null = (plain_logits(weights, ids, c, num_ar, end)[len(ids) :] for c in (label, CLASSES))
        ids += (null + scale * (conditional - null)).argmax(-1).tolist()
    return ids


@pytest.mark.parametrize(("num_ar", "length"), [(1, 8), (2, 16), (4, 16), (4, 32), (8, 16), (16, 16), (None, 8)])
def test_logits_equal_plain_loops(num_ar: int | None, length: int) -> None:
    weights = official_weights(0 if num_ar is None else length - 1)
    model = from_official(weights, {"n_head": HEADS, "ar_token_num": num_ar, "num_latent_tokens": length})
    ids = torch.randint(VOCAB, (2, length))
    labels = torch.tensor([3, CLASSES])
    wanted = torch.stack(
        [plain_logits(weights, row.tolist(), int(c), num_ar, length) for row, c in zip(ids, labels, strict=True)]
    )
    assert wanted.std() > 0.5
    torch.testing.assert_close(model(ids, labels).double(), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.double()(ids, labels), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("num_ar", "length"), [(1, 8), (2, 8), (4, 16), (None, 8)])
def test_greedy_ids_equal_plain_loops(num_ar: int | None, length: int) -> None:
    weights = official_weights(0 if num_ar is None else length - 1)
    model = from_official(weights, {"n_head": HEADS, "ar_token_num": num_ar, "num_latent_tokens": length})
    wanted = [plain_greedy(weights, label, num_ar, length, scale=2.5) for label in (1, 4)]
    for use_cache in (True, False):
        settings = LevelARSettings(guidance_scale=2.5, greedy=True, use_cache=use_cache)
        assert model.generate(torch.tensor([1, 4]), settings).concat().tolist() == wanted


def test_round_trip_and_prefixes() -> None:
    weights = official_weights(15)
    model = from_official({f"module._orig_mod.{name}": x for name, x in weights.items()}, {"model": {"n_head": HEADS}})
    assert model.config["num_ar_tokens"] == 4
    assert model.num_tokens == 16
    assert not model.training
    assert model.config["ffn_dim"] == HIDDEN
    back = to_official(model)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    # The model owns its weights: training it must not change the caller's tensors.
    with torch.no_grad():
        model.head.weight.zero_()
    assert weights["output.weight"].any()


def test_without_a_config_the_published_sizes_are_assumed() -> None:
    token_by_token = official_weights(0)
    with pytest.raises(ValueError, match=r"32 channels are not known: give config\['n_head'\]"):
        from_official(token_by_token)
    wide = {
        name: torch.zeros([2 * n if n == DIM else 6 * DIM if n == 3 * DIM else n for n in x.shape])
        for name, x in token_by_token.items()
    }
    model = from_official(wide)
    assert (model.config["num_heads"], model.num_tokens, model.config["layout"]) == (1, 128, "token")
    assert from_official(token_by_token, {"gpt_model": "GPT-L"}).config["num_heads"] == 16
    dead_rows = from_official(official_weights(127), {"generator": {"num_latent_tokens": 8, "n_head": HEADS}})
    assert dead_rows.num_tokens == 8


def test_errors_name_the_tensor() -> None:
    weights, config = official_weights(7), {"n_head": HEADS}
    for name in ("tok_embeddings.weight", "layers.0.feed_forward.w1.weight"):
        with pytest.raises(ValueError, match=f"the state dict lacks tensor '{name}'"):
            from_official({key: x for key, x in weights.items() if key != name}, config)
    for name in ("layers.1.attention.wo.weight", "norm.weight"):
        with pytest.raises(ValueError, match=f"missing '{name}', unexpected nothing"):
            from_official({key: x for key, x in weights.items() if key != name}, config)
    with pytest.raises(ValueError, match=r"unexpected 'layers\.0\.adaLN\.weight'"):
        from_official({**weights, "layers.0.adaLN.weight": torch.zeros(1)}, config)
    with pytest.raises(ValueError, match=r"'norm.weight' has shape \(3,\), expected \(32,\)"):
        from_official({**weights, "norm.weight": torch.zeros(3)}, config)
    with pytest.raises(ValueError, match=r"'tok_embeddings.weight' has shape \(3,\), expected 2 dimensions"):
        from_official({**weights, "tok_embeddings.weight": torch.zeros(3)}, config)
    with pytest.raises(ValueError, match="gpt_model is 'GPT-S', expected one of GPT-B"):
        from_official(weights, {"gpt_model": "GPT-S"})
    with pytest.raises(ValueError, match="num_tokens is 12, expected a power of two"):
        from_official(weights, {**config, "num_latent_tokens": 12})
