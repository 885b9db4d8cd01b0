"""H-Net with official weights against a transcription of the specification, and its losses; names, sizes and errors of the converter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hiergen.convert.sequences.hnet import from_official, official_name, to_official
from hiergen.generators.sequences.hnet.model import HNet
from hiergen.generators.sequences.texts import Texts
from hiergen.pretrained.official import OFFICIAL, of_preset
from hiergen.registry import create, get_preset

V, N, HEADS, STATE, WINDOW = 11, 15, 2, 4, 2
SIZES: dict[str, Any] = {
    "layout": ["m1T1", ["T1m1", ["t1T1"], "m2"], "m1"],
    "dims": [8, 8, 16],
    "num_heads": [HEADS] * 3,
    "ffn_dims": [10, 12, 14],
    "windows": [None, WINDOW, None],
    "targets": [3.0, 3.0],
    "state_dim": STATE,
    "head_dim": 4,
    "vocab_size": V,
    "residual_bias": "uniform",
}
CONFIG = {"attn_cfg": {"num_heads": [HEADS] * 3, "rotary_emb_dim": [2, 2, 4], "window_size": [-1, WINDOW, -1]}}


def official() -> dict[str, Tensor]:
    """Random tensors under the official names, in which every one matters."""
    rng = torch.Generator().manual_seed(5)
    found = {}
    for name, tensor in to_official(HNet(**SIZES)).items():
        scale = 1.0 if tensor.ndim != 2 or "embeddings" in name else tensor.shape[-1] ** -0.5
        found[name] = torch.randn(tensor.shape, generator=rng) * scale + ("norm" in name and tensor.ndim == 1)
    return found


def build() -> tuple[dict[str, Tensor], HNet]:
    tensors = official()
    return {name: tensor.double() for name, tensor in tensors.items()}, from_official(tensors, CONFIG).double()


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def mamba(w: dict[str, Tensor], name: str, u: Tensor) -> Tensor:
    inner, heads = len(w[f"{name}.norm.weight"]), len(w[f"{name}.dt_bias"])
    z, xbc, delta = (u @ w[f"{name}.in_proj.weight"].T).split([inner, inner + 2 * STATE, heads], dim=-1)
    state, found = torch.zeros(heads, inner // heads, STATE).double(), []
    for t in range(len(u)):
        pre = w[f"{name}.conv1d.bias"].clone()
        for j in range(4):
            if t - 3 + j >= 0:
                pre = pre + w[f"{name}.conv1d.weight"][:, 0, j] * xbc[t - 3 + j]
        x, b, c = silu(pre).split([inner, STATE, STATE])
        step = torch.log1p(torch.exp(delta[t] + w[f"{name}.dt_bias"]))
        parts = x.view(heads, -1)
        decay = torch.exp(-step * torch.exp(w[f"{name}.A_log"]))
        state = decay[:, None, None] * state + (step[:, None] * parts)[:, :, None] * b
        y = (state @ c + w[f"{name}.D"][:, None] * parts).flatten()
        found.append(y)
    return rms(torch.stack(found) * silu(z), w[f"{name}.norm.weight"]) @ w[f"{name}.out_proj.weight"].T


def attend(w: dict[str, Tensor], name: str, x: Tensor, rotary: int, window: int) -> Tensor:
    q, k, v = (x @ w[f"{name}.Wqkv.weight"].T).chunk(3, dim=-1)
    size, half, found = x.shape[1] // HEADS, rotary // 2, []
    # The tables are float32, as the spec has them.
    angle = torch.arange(len(x))[:, None].double() * 10000.0 ** (-torch.arange(half).double() * 2 / rotary)
    cos, sin = angle.cos().float().double(), angle.sin().float().double()

    def turn(part: Tensor) -> Tensor:
        a, b = part[:, :half], part[:, half:rotary]
        return torch.cat((a * cos - b * sin, b * cos + a * sin, part[:, rotary:]), dim=1)

    lag = torch.arange(len(x))[:, None] - torch.arange(len(x))
    hidden = (lag < 0) | ((lag > window) if window >= 0 else torch.zeros_like(lag, dtype=torch.bool))
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        scores = (turn(q[:, part]) @ turn(k[:, part]).T / math.sqrt(size)).masked_fill(hidden, -math.inf)
        found.append(scores.softmax(-1) @ v[:, part])
    return torch.cat(found, dim=1) @ w[f"{name}.out_proj.weight"].T


def stack(w: dict[str, Tensor], name: str, x: Tensor, stage: int) -> Tensor:
    rotary, window = (CONFIG["attn_cfg"][key][stage] for key in ("rotary_emb_dim", "window_size"))
    layer = 0
    while (place := f"{name}.layers.{layer}") + ".norm1.weight" in w:
        h = rms(x, w[f"{place}.norm1.weight"])
        is_mamba = f"{place}.mixer.in_proj.weight" in w
        x = x + (mamba(w, f"{place}.mixer", h) if is_mamba else attend(w, f"{place}.mixer", h, rotary, window))
        if f"{place}.norm2.weight" in w:
            value, gate = (rms(x, w[f"{place}.norm2.weight"]) @ w[f"{place}.mlp.fc1.weight"].T).chunk(2, dim=-1)
            x = x + (value * silu(gate)) @ w[f"{place}.mlp.fc2.weight"].T
        layer += 1
    return rms(x, w[f"{name}.rmsnorm.weight"])


def run(w: dict[str, Tensor], prefix: str, x: Tensor, stage: int, routed: list[tuple[Tensor, Tensor]]) -> Tensor:
    outer = x.shape[1]
    if f"{prefix}pad_dimension" in w:
        x = torch.cat((x, w[f"{prefix}pad_dimension"].expand(len(x), -1)), dim=1)
    if f"{prefix}residual_proj.weight" not in w:
        return stack(w, f"{prefix}main_network", x, stage)[:, :outer]
    e = stack(w, f"{prefix}encoder", x, stage)
    probabilities = [torch.ones(()).double()]
    for t in range(1, len(e)):
        query = w[f"{prefix}routing_module.q_proj_layer.weight"] @ e[t - 1]
        key = w[f"{prefix}routing_module.k_proj_layer.weight"] @ e[t]
        probabilities.append((1 - query @ key / (query.norm() * key.norm())) / 2)
    p = torch.stack(probabilities)
    b = p > 0.5
    routed.append((p, b))
    z = run(w, f"{prefix}main_network.", e[b], stage + 1, routed)
    smooth, last = [], torch.zeros_like(z[0])
    for share, chunk in zip(p[b].clamp(1e-4, 1 - 1e-4), z, strict=True):
        last = share * chunk + (1 - share) * last
        smooth.append(last)
    u = torch.stack(smooth)[b.long().cumsum(0) - 1]
    c = torch.where(b, p, 1 - p)
    y = u * (c + (1 - c).detach())[:, None]
    y = y + e @ w[f"{prefix}residual_proj.weight"].T + w[f"{prefix}residual_proj.bias"]
    return stack(w, f"{prefix}decoder", y, stage)[:, :outer]


def plain(w: dict[str, Tensor], ids: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Logits of one text, and the probabilities and boundaries of each stage."""
    routed: list[tuple[Tensor, Tensor]] = []
    y = run(w, "backbone.", w["embeddings.weight"][ids], 0, routed)
    return y @ w["lm_head.weight"].T, routed


def texts() -> tuple[Tensor, Tensor]:
    return torch.randint(V, (3, N), generator=torch.Generator().manual_seed(6)), torch.tensor([N, 9, 4])


def test_logits_and_boundaries_are_the_official_ones() -> None:
    w, model = build()
    ids, lengths = texts()
    found, starts = model(ids, lengths), model.find_boundaries(ids, lengths)
    for row, length in enumerate(lengths.tolist()):
        logits, routed = plain(w, ids[row, :length])
        torch.testing.assert_close(found[row, :length], logits, rtol=1e-9, atol=1e-9)
        assert torch.equal(starts[0][row, :length], routed[0][1])
        assert torch.equal(starts[1][row, :length].nonzero()[:, 0], routed[0][1].nonzero()[:, 0][routed[1][1]])
    # Nothing is trivial about them.
    assert 3 < int(starts[0].sum()) < int(lengths.sum())
    assert int(starts[1].sum()) < int(starts[0].sum())
    narrow = model.float()(ids, lengths)
    assert float((narrow - found).detach()[0].abs().max() / found.detach()[0].abs().max()) < 1e-5


def test_the_loss_and_its_gradients_are_the_official_ones() -> None:
    w, model = build()
    ids, lengths = texts()
    w = {name: tensor.requires_grad_() for name, tensor in w.items()}
    nats, routed = [], []
    for row, length in zip(ids, lengths.tolist(), strict=True):
        logits, chunks = plain(w, row[: min(length, N - 1)])
        nats.append(-logits[: length - 1].log_softmax(-1)[torch.arange(length - 1), row[1:length]])
        routed.append(chunks)
    loss = torch.cat(nats).mean()
    for stage in range(2):
        p, b = (torch.cat([chunks[stage][part] for chunks in routed]) for part in range(2))
        share, mean = b.double().mean(), p.mean()
        loss = loss + 0.03 * 3 / 2 * (2 * share * mean + (1 - share) * (1 - mean))
    loss.backward()
    found = model.loss(Texts(ids, lengths))["loss"]
    torch.testing.assert_close(found, loss, rtol=1e-10, atol=1e-10)
    found.backward()
    ours = HNet(**SIZES).double()
    with torch.no_grad():
        for parameter, trained in zip(ours.parameters(), model.parameters(), strict=True):
            assert trained.grad is not None
            parameter.copy_(trained.grad)
    for name, gradient in to_official(ours).items():
        assert w[name].grad is not None, name
        torch.testing.assert_close(gradient, w[name].grad, rtol=1e-8, atol=1e-10)


def test_weights_go_there_and_back_unchanged() -> None:
    tensors = official()
    model = from_official({"model": {f"module.{name}": tensor for name, tensor in tensors.items()}}, CONFIG)
    back = to_official(model)
    assert set(back) == set(tensors)
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    for name in ("layout", "dims", "num_heads", "ffn_dims", "windows", "state_dim", "head_dim", "vocab_size"):
        assert model.config[name] == SIZES[name], name
    assert not model.training


def test_a_plain_model_goes_there_and_back() -> None:
    model = HNet(layout=["T1m1"], dims=[8], num_heads=[2], state_dim=STATE, head_dim=4, vocab_size=V)
    back = from_official(to_official(model), {"num_heads": [2]})
    ids = texts()[0]
    torch.testing.assert_close(back(ids), model(ids))
    assert back.config["layout"] == ["T1m1"]


@pytest.mark.parametrize(
    ("preset", "count", "inner"),
    [
        ("hnet-1stage-l", 214, "backbone.main_network.main_network.layers.21.mlp.fc2.weight"),
        ("hnet-1stage-xl", 226, "backbone.main_network.pad_dimension"),
        ("hnet-2stage-l", 328, "backbone.main_network.routing_module.k_proj_layer.weight"),
        ("hnet-2stage-xl", 335, "backbone.main_network.main_network.main_network.rmsnorm.weight"),
        ("hnet-2stage-xl-chinese", 353, "backbone.main_network.main_network.pad_dimension"),
        ("hnet-2stage-xl-code", 341, "backbone.residual_proj.bias"),
    ],
)
def test_published_checkpoints_have_these_tensors(preset: str, count: int, inner: str) -> None:
    with torch.device("meta"):
        model = create(preset)
    names = {official_name(name, len(model.stages)) for name in model.state_dict()}
    official_names = {name.removesuffix(".value").removesuffix(".gate") for name in names}
    assert len(official_names) == count
    assert inner in official_names
    # What no shape tells is as published where no configuration is given.
    assert get_preset(preset).config["num_heads"] == [16] * len(model.stages)
    (row,) = [OFFICIAL[name] for name in of_preset(preset)]
    assert str(row.repository).lower().endswith(preset.replace("-", "_"))
    assert "hiergen convert hnet" in str(row.by_hand)


def test_published_windows_are_taken_without_a_configuration() -> None:
    sizes = {**SIZES, "dims": [64, 64, 64], "num_heads": [16] * 3, "ffn_dims": None}
    model = from_official(to_official(HNet(**sizes)))
    assert model.config["windows"] == [None, 1023, None]
    assert model.config["num_heads"] == [16, 16, 16]


def test_what_does_not_fit_is_named() -> None:
    tensors = official()
    with pytest.raises(ValueError, match=r"lacks tensor 'embeddings.weight'"):
        from_official({"lm_head.weight": tensors["lm_head.weight"]})
    name = "backbone.residual_proj.bias"
    with pytest.raises(ValueError, match=f"lacks tensor '{name}'"):
        from_official({key: value for key, value in tensors.items() if key != name}, CONFIG)
    with pytest.raises(ValueError, match=r"holds 1 tensors that HNet has not: backbone\.extra"):
        from_official({**tensors, "backbone.extra": torch.zeros(1)}, CONFIG)
    name = "backbone.encoder.layers.1.mixer.Wqkv.weight"
    with pytest.raises(ValueError, match=rf"'{name}' has shape \(23, 8\), expected \(24, 8\)"):
        from_official({**tensors, name: torch.zeros(23, 8)}, CONFIG)
    with pytest.raises(ValueError, match=r"num_heads is \[2\], expected 3 entries"):
        from_official(tensors, {"num_heads": [2]})
