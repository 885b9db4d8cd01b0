"""TiTok's MaskGIT generators with official weights against a transcription of the specification, and of its sampler."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hiergen.convert.one_dimensional.maskgit import from_official, to_official
from hiergen.generators.masked.ids.model import MaskedIds
from hiergen.generators.masked.ids.settings import MaskedIdsSettings
from hiergen.pyramid import TokenPyramid
from hiergen.registry import create

N, V, CLASSES, DIM, HEADS = 6, 13, 4, 16, 2
SPECS = [{"num_tokens": N, "grid": None, "dim": 12, "vocab_size": V}]
SIZES: dict[str, Any] = {"level_specs": SPECS, "num_classes": CLASSES, "dim": DIM, "depth": 4, "num_heads": HEADS}
FORMS = {"bert": "maskgit-l-32", "uvit": "maskgit-s-128"}


def official(form: str) -> dict[str, Tensor]:
    """Random tensors under the official names, in which every one matters."""
    rng = torch.Generator().manual_seed(7)
    found = {}
    for name, tensor in to_official(create(FORMS[form], **SIZES)).items():
        scale = 1.0 if "embed" in name else tensor.shape[-1] ** -0.5
        found[name] = torch.randn(tensor.shape, generator=rng) * scale + (tensor.ndim == 1 and name.endswith("weight"))
    return found


def build(form: str) -> tuple[dict[str, Tensor], MaskedIds]:
    """The official tensors in float64, and our model of them."""
    tensors = official(form)
    model = from_official(tensors, {"num_attention_heads": HEADS}).double()
    return {name: tensor.double() for name, tensor in tensors.items()}, model


def norm(w: dict[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (variance + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros((), dtype=torch.float64))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    size = DIM // HEADS
    parts = [slice(head * size, (head + 1) * size) for head in range(HEADS)]
    return torch.cat([(q[..., p] @ k[..., p].mT / math.sqrt(size)).softmax(-1) @ v[..., p] for p in parts], dim=-1)


def plain_bert(w: dict[str, Tensor], rows: Tensor) -> Tensor:
    table = "model.embeddings"
    x = w[f"{table}.word_embeddings.weight"][rows] + w[f"{table}.token_type_embeddings.weight"][0]
    x = norm(w, f"{table}.LayerNorm", x + w[f"{table}.position_embeddings.weight"], 1e-12)
    for layer in range(4):
        name = f"model.encoder.layer.{layer}"
        q, k, v = (linear(w, f"{name}.attention.self.{part}", x) for part in ("query", "key", "value"))
        y = linear(w, f"{name}.attention.output.dense", attend(q, k, v))
        x = norm(w, f"{name}.attention.output.LayerNorm", x + y, 1e-12)
        y = linear(w, f"{name}.output.dense", gelu(linear(w, f"{name}.intermediate.dense", x)))
        x = norm(w, f"{name}.output.LayerNorm", x + y, 1e-12)
    return linear(w, "model.lm_head", x[:, 1:])


def plain_uvit(w: dict[str, Tensor], rows: Tensor) -> Tensor:
    def block(name: str, x: Tensor) -> Tensor:
        x = x + linear(
            w,
            f"{name}.attn.proj",
            attend(*linear(w, f"{name}.attn.qkv", norm(w, f"{name}.norm1", x, 1e-5)).chunk(3, -1)),
        )
        return x + linear(w, f"{name}.mlp.fc2", gelu(linear(w, f"{name}.mlp.fc1", norm(w, f"{name}.norm2", x, 1e-5))))

    x = first = block("in_blocks.0", w["embeddings.weight"][rows] + w["pos_embed"])
    second = block("in_blocks.1", x)
    x = block("mid_block", second)
    x = block("out_blocks.0", linear(w, "out_blocks.0.skip_linear", torch.cat((x, second), dim=-1)))
    x = block("out_blocks.1", linear(w, "out_blocks.1.skip_linear", torch.cat((x, first), dim=-1)))
    return linear(w, "lm_head", norm(w, "norm", x, 1e-5)[:, 1:])


PLAIN = {"bert": plain_bert, "uvit": plain_uvit}


def plain_logits(form: str, w: dict[str, Tensor], ids: Tensor, labels: Tensor) -> Tensor:
    """Logits of ids with V for a hidden one; label `CLASSES` is no class."""
    return PLAIN[form](w, torch.cat((V + 1 + labels[:, None], ids), dim=1))


def plain_generate(
    form: str, w: dict[str, Tensor], labels: Tensor, rng: torch.Generator, *, steps: int, t: float, s: float, kind: str,
    p: float = 3.0, anneal: bool = False,
) -> Tensor:  # fmt: skip
    """The released sampler, step by step."""

    def gumbel(shape: torch.Size) -> Tensor:
        u = torch.rand(shape, generator=rng)
        return -torch.log(torch.clamp(-torch.log(torch.clamp(u, min=1e-20)), min=1e-20))

    batch = len(labels)
    ids = torch.full((batch, N), V)
    for k in range(steps):
        r, hidden = (k + 1) / steps, ids == V
        w_k = {"constant": s, "linear": s * k / steps}.get(
            kind, 1 + (s - 1) * 0.5 * (1 - math.cos(math.pi * (k / steps) ** p))
        )
        torch.rand(batch, generator=rng)
        c = plain_logits(form, w, ids, labels)
        logits = c
        if w_k != 0:
            torch.rand(batch, generator=rng)
            n = plain_logits(form, w, ids, torch.full_like(labels, CLASSES))
            logits = n + w_k * (c - n) if kind == "power-cosine" else c + w_k * (c - n)
        if anneal:
            logits = logits / (0.5 + 0.8 * (1 - r))
        tau = t * (1 - r)
        new = torch.where(hidden, (logits + tau * gumbel(logits.shape)).argmax(-1), ids)
        confidence = torch.where(hidden, logits.gather(2, new[..., None])[..., 0], torch.inf)
        confidence = confidence + tau * gumbel(confidence.shape)
        if k == steps - 1:
            return new
        m = max(1, min(int(hidden[0].sum()) - 1, math.floor(N * math.acos(r) / (math.pi / 2))))
        threshold = confidence.sort(dim=1).values[:, m - 1 : m]
        ids = torch.where(confidence <= threshold, V, new)
    raise AssertionError("there is at least one step")


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_the_official_ones(form: str) -> None:
    w, model = build(form)
    ids, labels = torch.randint(V + 1, (3, N)), torch.tensor([0, 3, CLASSES])
    expected = plain_logits(form, w, ids, labels)
    torch.testing.assert_close(model(ids, labels), expected, rtol=1e-10, atol=1e-10)
    narrow = model.float()(ids, labels)
    assert float((narrow - expected).detach().abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("ours", "plain"),
    [
        ({"guidance_schedule": "muse", "guidance_scale": 0.0}, {"s": 0.0, "kind": "constant"}),
        ({"guidance_schedule": "muse", "guidance_scale": 4.5}, {"s": 4.5, "kind": "constant"}),
        ({"guidance_schedule": "muse_linear", "guidance_scale": 4.5}, {"s": 4.5, "kind": "linear"}),
        ({"guidance_schedule": "power_cosine", "guidance_scale": 6.9}, {"s": 6.9, "kind": "power-cosine"}),
        (
            {"guidance_schedule": "power_cosine", "guidance_scale": 3.0, "guidance_power": 1.5, "anneal_softmax": True},
            {"s": 3.0, "kind": "power-cosine", "p": 1.5, "anneal": True},
        ),
        (
            {"guidance_schedule": "muse_linear", "guidance_scale": 3.0, "anneal_softmax": True, "temperature": 0.0},
            {"s": 3.0, "kind": "linear", "anneal": True, "t": 0.0},
        ),
    ],
)
def test_sampled_ids_and_the_random_stream_are_the_official_ones(form: str, ours: Any, plain: Any) -> None:
    w, model = build(form)
    labels = torch.tensor([0, 3, 1, 2, 2])
    settings = MaskedIdsSettings(**{"num_steps": 4, "temperature": 2.5, "official_draws": True, **ours})
    rngs = [torch.Generator().manual_seed(11) for _ in range(2)]
    found = model.generate(labels, settings, rng=rngs[0]).levels[0]
    assert torch.equal(found, plain_generate(form, w, labels, rngs[1], **{"steps": 4, "t": 2.5, **plain}))
    assert torch.equal(rngs[0].get_state(), rngs[1].get_state())


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_is_the_official_one(form: str) -> None:
    """Draws in order: how many are hidden, which, and whose label is dropped."""
    w, model = build(form)
    ids, labels = torch.randint(V, (5, N)), torch.tensor([0, 1, 2, 3, 0])
    rng = torch.Generator().manual_seed(4)
    t = torch.rand(5, generator=rng)
    counts = [max(1, round(N * max(1e-6, math.acos(float(x)) / (math.pi / 2)))) for x in t]
    ranks = torch.rand(5, N, generator=rng).argsort(dim=-1)
    hidden = ranks < torch.tensor(counts)[:, None]
    dropped = torch.where(torch.rand(5, generator=rng) < 0.1, CLASSES, labels)
    logits = plain_logits(form, w, torch.where(hidden, V, ids), dropped)
    log_p = logits.log_softmax(-1)
    target = 0.9 * torch.eye(V)[ids] + 0.1 / V
    errors = -(target * log_p).sum(-1)
    weights = hidden + 0.1 * ~hidden
    expected = (weights * errors).sum() / (weights.sum() + 1e-8)
    hits = (logits.argmax(-1) == ids) & hidden
    model.train()
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    found = model.loss(TokenPyramid((ids,), model.specs), labels, rng=torch.Generator().manual_seed(4))
    torch.testing.assert_close(found["loss"].double(), expected, rtol=2e-6, atol=0)
    torch.testing.assert_close(found["accuracy"].double(), (hits.sum(1) / hidden.sum(1)).mean().double())


@pytest.mark.parametrize("form", FORMS)
def test_official_to_ours_and_back_is_the_identity(form: str) -> None:
    tensors = official(form)
    extra = {"model.embeddings.position_ids": torch.arange(N + 1)[None]} if form == "bert" else {}
    back = to_official(from_official({**tensors, **extra}, {"num_attention_heads": HEADS}))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("form", "name", "error"),
    [
        ("bert", "model.lm_head.weight", "lacks tensor 'lm_head.weight'"),
        ("uvit", "embeddings.weight", "lacks tensor 'embeddings.weight'"),
        ("bert", "model.encoder.layer.0.attention.self.key.bias", "lacks tensor 'encoder.layer.0.attention.self.key.b"),
    ],
)
def test_a_missing_tensor_is_named(form: str, name: str, error: str) -> None:
    tensors = official(form)
    del tensors[name]
    with pytest.raises(ValueError, match=error):
        from_official(tensors, {"num_attention_heads": HEADS})


def test_official_names_of_the_published_sizes() -> None:
    with torch.device("meta"):
        bert, uvit = (to_official(create(FORMS[form])) for form in ("bert", "uvit"))
    assert (len(bert), len(uvit)) == (391, 257)
    assert tuple(bert["model.embeddings.word_embeddings.weight"].shape) == (5098, 768)
    assert tuple(bert["model.embeddings.token_type_embeddings.weight"].shape) == (2, 768)
    assert tuple(uvit["embeddings.weight"].shape) == (5098, 1024)
    assert tuple(uvit["pos_embed"].shape) == (1, 129, 1024)
    assert tuple(uvit["out_blocks.9.skip_linear.weight"].shape) == (1024, 2048)
    assert "mid_block.attn.qkv.bias" not in uvit
