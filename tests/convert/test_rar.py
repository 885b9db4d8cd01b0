"""RAR with official weights against a transcription of the specification, and of its sampler."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hiergen.convert.one_dimensional.rar import from_official, to_official
from hiergen.generators.random_order.model import RandomOrderAR, RandomOrderARSettings
from hiergen.pyramid import TokenPyramid
from hiergen.registry import create

N, V, CLASSES, DIM, HEADS, DEPTH = 9, 13, 4, 16, 2, 2
SPECS = [{"num_tokens": N, "grid": [3, 3], "dim": 256, "vocab_size": V}]
SIZES: dict[str, Any] = {"level_specs": SPECS, "num_classes": CLASSES, "dim": DIM, "depth": DEPTH, "num_heads": HEADS}
SIZES |= {"ffn_dim": 40, "num_position_rows": N + 1024, "num_step_rows": N + 100}


def official() -> dict[str, Tensor]:
    """Random tensors under the official names, in which every one matters."""
    rng = torch.Generator().manual_seed(7)
    found = {}
    for name, tensor in to_official(create("rar-b", **SIZES)).items():
        scale = 1.0 if "embed" in name else tensor.shape[-1] ** -0.5
        found[name] = torch.randn(tensor.shape, generator=rng) * scale + (tensor.ndim == 1 and "norm" in name)
    return found


def build() -> tuple[dict[str, Tensor], RandomOrderAR]:
    """The official tensors in float64, and our model of them."""
    tensors = official()
    return {name: tensor.double() for name, tensor in tensors.items()}, from_official(tensors).double()


def standardize(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()


def norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return standardize(x) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def plain_logits(w: dict[str, Tensor], ids: list[int], label: int, order: list[int]) -> Tensor:
    """Logits of one sample, `(len(ids) + 1, V)`; the ids are in the order, label `CLASSES` is no class."""
    table, p, t = w["embeddings.weight"], w["pos_embed"][0], w["target_aware_pos_embed"][0]
    class_row = table[V + 1 + label]
    xs = [w["cls_token"][0, 0] + p[0], class_row + p[1] + t[2 + order[0]]]
    for i, token in enumerate(ids):
        row = table[token] + p[2 + order[i]]
        xs.append(row + t[2 + order[i + 1]] if i < N - 1 else row)
    x = torch.stack(xs)
    a = class_row + w["timesteps_embeddings"][0, : len(x)]
    a = a * torch.sigmoid(a)
    size, seen = DIM // HEADS, torch.ones(len(x), len(x)).tril().bool()
    for layer in range(DEPTH):
        name = f"blocks.{layer}"
        sh1, sc1, g1, sh2, sc2, g2 = linear(w, f"{name}.adaLN_modulation.1", a).chunk(6, dim=-1)
        q, k, v = linear(w, f"{name}.attn.qkv", norm(w, f"{name}.norm1", x) * (1 + sc1) + sh1).chunk(3, dim=-1)
        found = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            query, key = norm(w, f"{name}.attn.q_norm", q[:, part]), norm(w, f"{name}.attn.k_norm", k[:, part])
            scores = (query @ key.T / math.sqrt(size)).masked_fill(~seen, -math.inf)
            found.append(scores.softmax(-1) @ v[:, part])
        x = x + g1 * linear(w, f"{name}.attn.proj", torch.cat(found, dim=-1))
        y = linear(w, f"{name}.mlp.fc1", norm(w, f"{name}.norm2", x) * (1 + sc2) + sh2)
        x = x + g2 * linear(w, f"{name}.mlp.fc2", y * (1 + torch.erf(y / math.sqrt(2))) / 2)
    # Here the scale comes first.
    scale, shift = linear(w, "adaln_before_head.adaLN_modulation.1", a[1:]).chunk(2, dim=-1)
    return linear(w, "lm_head", standardize(x[1:]) * (1 + scale) + shift)


ORDERS = {
    "raster": list(range(N)),
    "reverse": list(range(N))[::-1],
    "random": torch.randperm(N, generator=torch.Generator().manual_seed(3)).tolist(),
}


@pytest.mark.parametrize("count", [0, 1, N - 1, N])
def test_logits_are_the_official_ones(count: int) -> None:
    w, model = build()
    labels, ids = [1, CLASSES, 3], torch.randint(V, (3, count))
    order = torch.tensor(list(ORDERS.values()))
    found = model(ids, torch.tensor(labels), order)
    assert found.shape == (3, count + 1, V)
    expected = torch.stack([plain_logits(w, ids[b].tolist(), labels[b], order[b].tolist()) for b in range(3)])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    raster = model(ids[:1], torch.tensor(labels[:1]))
    torch.testing.assert_close(raster, expected[:1], rtol=1e-10, atol=1e-10)
    narrow = model.float()(ids, torch.tensor(labels), order)
    assert float((narrow - expected).detach().abs().max() / expected.abs().max()) < 1e-5


def plain_generate(
    w: dict[str, Tensor], labels: list[int], rng: torch.Generator, *, t: float, s: float, p: float
) -> Tensor:
    """The released sampler without a cache."""
    torch.rand(len(labels), generator=rng)
    ids: list[list[int]] = [[] for _ in labels]
    for k in range(N):
        scale = 1 + (s - 1) * 0.5 * (1 - math.cos(math.pi * (k / N) ** p))
        rows = []
        for row, label in zip(ids, labels, strict=True):
            c, n = (plain_logits(w, row, y, ORDERS["raster"])[-1] for y in (label, CLASSES))
            rows.append(n + scale * (c - n))
        drawn = torch.multinomial((torch.stack(rows).float() / t).softmax(-1), 1, generator=rng)
        ids = [[*row, int(token)] for row, token in zip(ids, drawn[:, 0], strict=True)]
    return torch.tensor(ids)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(("t", "s", "p"), [(1.0, 16.0, 2.75), (1.02, 6.9, 1.5), (1.0, 4.0, 0.0)])
def test_sampled_ids_and_the_random_stream_are_the_official_ones(use_cache: bool, t: float, s: float, p: float) -> None:
    w, model = build()
    labels = [0, 3, 1, 2]
    settings = RandomOrderARSettings(
        temperature=t,
        guidance_scale=s,
        guidance_schedule="power_cosine",
        guidance_power=p,
        use_cache=use_cache,
        official_draws=True,
    )
    rngs = [torch.Generator().manual_seed(11) for _ in range(2)]
    found = model.generate(torch.tensor(labels), settings, rng=rngs[0]).levels[0]
    assert torch.equal(found, plain_generate(w, labels, rngs[1], t=t, s=s, p=p))
    assert torch.equal(rngs[0].get_state(), rngs[1].get_state())


def test_the_loss_is_the_mean_over_tokens_in_the_order_that_was_drawn() -> None:
    w, model = build()
    ids, labels = torch.randint(V, (6, N)), torch.tensor([0, 1, 2, 3, 0, 1])
    model.train()
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    model.random_share = 0.5
    rng = torch.Generator().manual_seed(4)
    dropped = torch.where(torch.rand(6, generator=rng) < 0.1, CLASSES, labels)
    is_random = torch.rand(6, generator=rng) < 0.5
    orders = torch.where(is_random[:, None], torch.rand(6, N, generator=rng).argsort(1), torch.arange(N))
    assert 0 < int(is_random.sum()) < 6
    errors = []
    for b in range(6):
        tokens = ids[b][orders[b]].tolist()
        log_p = plain_logits(w, tokens, int(dropped[b]), orders[b].tolist()).log_softmax(-1)
        errors += [-log_p[i, token] for i, token in enumerate(tokens)]
    found = model.loss(TokenPyramid((ids,), model.specs), labels, rng=torch.Generator().manual_seed(4))
    torch.testing.assert_close(found["loss"].double(), torch.stack(errors).mean(), rtol=2e-6, atol=0)


def test_official_to_ours_and_back_is_the_identity() -> None:
    tensors = official()
    model = from_official(tensors)
    back = to_official(model)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    assert model.specs[0].grid == (3, 3)
    assert model.specs[0].num_tokens == N


@pytest.mark.parametrize(
    ("change", "config", "error"),
    [
        ({"pos_embed": None}, None, "lacks tensor 'pos_embed'"),
        ({"blocks.1.mlp.fc2.bias": None}, None, "lacks tensor 'blocks.1.mlp.fc2.bias'"),
        ({"pos_embed": torch.zeros(1, 900, DIM)}, None, "'pos_embed' has 900 rows, expected more than 1024"),
        ({"blocks.0.attn.q_norm.weight": torch.zeros(5)}, None, "q_norm.weight' has 5 channels, expected a divisor of"),
        ({}, {"image_seq_len": 2000}, "num_position_rows is 1033, expected at least 2002 for 2000 tokens"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Tensor | None], config: Any, error: str) -> None:
    tensors = {name: tensor for name, tensor in {**official(), **change}.items() if tensor is not None}
    with pytest.raises(ValueError, match=error):
        from_official(tensors, config)


def test_official_names_of_the_published_sizes() -> None:
    for size, count in {"b": 441, "l": 441, "xl": 585, "xxl": 729}.items():
        with torch.device("meta"):
            found = to_official(create(f"rar-{size}"))
        assert len(found) == count
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    assert shapes["embeddings.weight"] == (2026, 1408)
    assert shapes["timesteps_embeddings"] == (1, 356, 1408)
    assert shapes["cls_token"] == (1, 1, 1408)
    assert shapes["blocks.39.attn.k_norm.bias"] == (88,)
    assert shapes["blocks.39.mlp.fc1.weight"] == (6144, 1408)
    assert shapes["adaln_before_head.adaLN_modulation.1.weight"] == (2816, 1408)
