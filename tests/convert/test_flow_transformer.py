"""The converter against a transcription of the published forward pass that reads the official tensors and nothing of ours."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from hiergen.convert.flow_transformer import from_official, statistics_from_official
from hiergen.generators.flow.sampling import FlowSettings

DIM, DEPTH, HEADS, CHANNELS, SIDE, CLASSES = 24, 2, 3, 5, 4, 7


def position_embedding(dim: int, side: int) -> Tensor:
    table = torch.zeros(1, side * side, dim, dtype=torch.float64)
    quarter = dim // 4
    for row in range(side):
        for column in range(side):
            for k in range(quarter):
                omega = 10000 ** (-k / quarter)
                for offset, coordinate in ((0, column), (2 * quarter, row)):
                    table[0, row * side + column, offset + k] = math.sin(coordinate * omega)
                    table[0, row * side + column, offset + quarter + k] = math.cos(coordinate * omega)
    return table


def rotary_tables(head_dim: int, side: int) -> tuple[Tensor, Tensor]:
    angles = torch.zeros(side * side, head_dim, dtype=torch.float64)
    half = head_dim // 2
    for row in range(side):
        for column in range(side):
            for k in range(half // 2):
                omega = 10000 ** (-2 * k / half)
                for offset, coordinate in ((0, row), (half, column)):
                    angles[row * side + column, offset + 2 * k : offset + 2 * k + 2] = coordinate * omega
    return angles.cos(), angles.sin()


def official_state(*, is_sit: bool = False, patch: int = 1, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=rng, dtype=torch.float64)

    hidden = 4 * DIM if is_sit else 2 * 4 * DIM // 3
    state = {
        "pos_embed": position_embedding(DIM, SIDE // patch),
        "x_embedder.proj.weight": normal(DIM, CHANNELS, patch, patch),
        "x_embedder.proj.bias": normal(DIM),
        "t_embedder.mlp.0.weight": normal(DIM, 256),
        "t_embedder.mlp.0.bias": normal(DIM),
        "t_embedder.mlp.2.weight": normal(DIM, DIM),
        "t_embedder.mlp.2.bias": normal(DIM),
        "y_embedder.embedding_table.weight": normal(CLASSES + 1, DIM),
        "final_layer.adaLN_modulation.1.weight": normal(2 * DIM, DIM),
        "final_layer.adaLN_modulation.1.bias": normal(2 * DIM),
    }
    out = patch**2 * CHANNELS * (2 if is_sit else 1)
    state["final_layer.linear.weight"], state["final_layer.linear.bias"] = normal(out, DIM), normal(out)
    if not is_sit:
        state["feat_rope.freqs_cos"], state["feat_rope.freqs_sin"] = rotary_tables(DIM // HEADS, SIDE // patch)
        state["final_layer.norm_final.weight"] = 1 + normal(DIM)
    for i in range(DEPTH):
        shapes = {
            "attn.qkv": (3 * DIM, DIM),
            "attn.proj": (DIM, DIM),
            "adaLN_modulation.1": (6 * DIM, DIM),
            **(
                {"mlp.fc1": (hidden, DIM), "mlp.fc2": (DIM, hidden)}
                if is_sit
                else {"mlp.w12": (2 * hidden, DIM), "mlp.w3": (DIM, hidden)}
            ),
        }
        for name, shape in shapes.items():
            state[f"blocks.{i}.{name}.weight"] = normal(*shape)
            state[f"blocks.{i}.{name}.bias"] = normal(shape[0])
        if not is_sit:
            state[f"blocks.{i}.norm1.weight"] = 1 + normal(DIM)
            state[f"blocks.{i}.norm2.weight"] = 1 + normal(DIM)
    return {name: value.to(dtype) for name, value in state.items()}


def transcription(state: dict[str, Tensor], x: Tensor, time: Tensor, label: Tensor) -> Tensor:
    """The forward pass of the published model, float64, one sample at a time."""

    def linear(v: Tensor, name: str) -> Tensor:
        return v @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def silu(v: Tensor) -> Tensor:
        return v / (1 + torch.exp(-v))

    def norm(v: Tensor, name: str) -> Tensor:
        if f"{name}.weight" in state:
            return v / (v.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * state[f"{name}.weight"]
        centered = v - v.mean(-1, keepdim=True)
        return centered / (centered.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

    def rotate(v: Tensor) -> Tensor:
        if "feat_rope.freqs_cos" not in state:
            return v
        turned = torch.empty_like(v)
        turned[:, 0::2], turned[:, 1::2] = -v[:, 1::2], v[:, 0::2]
        return v * state["feat_rope.freqs_cos"] + turned * state["feat_rope.freqs_sin"]

    def attend(v: Tensor, name: str) -> Tensor:
        qkv = linear(v, f"{name}.qkv").reshape(-1, 3, HEADS, DIM // HEADS)
        heads = []
        for h in range(HEADS):
            q, k, value = rotate(qkv[:, 0, h]), rotate(qkv[:, 1, h]), qkv[:, 2, h]
            heads.append(torch.softmax(q @ k.T * (DIM // HEADS) ** -0.5, dim=-1) @ value)
        return linear(torch.cat(heads, dim=-1), f"{name}.proj")

    def feed(v: Tensor, name: str) -> Tensor:
        if f"{name}.w12.weight" in state:
            a, b = linear(v, f"{name}.w12").chunk(2, dim=-1)
            return linear(silu(a) * b, f"{name}.w3")
        u = linear(v, f"{name}.fc1")
        gelu = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
        return linear(gelu, f"{name}.fc2")

    patch = state["x_embedder.proj.weight"].shape[-1]
    outputs = []
    for b in range(len(x)):
        embedded = torch.nn.functional.conv2d(
            x[b : b + 1], state["x_embedder.proj.weight"], state["x_embedder.proj.bias"], stride=patch
        )
        tokens = embedded[0].flatten(1).T + state["pos_embed"][0]
        angles = torch.tensor([float(time[b]) * 10000 ** (-k / 128) for k in range(128)], dtype=torch.float64)
        features = torch.cat((angles.cos(), angles.sin()))
        c = linear(silu(linear(features, "t_embedder.mlp.0")), "t_embedder.mlp.2")
        c = c + state["y_embedder.embedding_table.weight"][label[b]]
        for i in range(DEPTH):
            shift1, scale1, gate1, shift2, scale2, gate2 = linear(silu(c), f"blocks.{i}.adaLN_modulation.1").chunk(6)
            normed = norm(tokens, f"blocks.{i}.norm1") * (1 + scale1) + shift1
            tokens = tokens + gate1 * attend(normed, f"blocks.{i}.attn")
            normed = norm(tokens, f"blocks.{i}.norm2") * (1 + scale2) + shift2
            tokens = tokens + gate2 * feed(normed, f"blocks.{i}.mlp")
        shift, scale = linear(silu(c), "final_layer.adaLN_modulation.1").chunk(2)
        tokens = linear(norm(tokens, "final_layer.norm_final") * (1 + scale) + shift, "final_layer.linear")
        side = SIDE // patch
        squares = tokens.reshape(side, side, patch, patch, -1)
        outputs.append(squares.permute(4, 0, 2, 1, 3).reshape(-1, SIDE, SIDE)[:CHANNELS])
    return torch.stack(outputs)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(9)
    x = torch.randn(3, CHANNELS, SIDE, SIDE, generator=rng, dtype=torch.float64)
    return x, torch.tensor([0.0, 0.37, 1.0], dtype=torch.float64), torch.tensor([0, CLASSES, 3])


@pytest.mark.parametrize(("is_sit", "patch"), [(False, 1), (False, 2), (True, 2)])
def test_velocity_is_the_published_one(is_sit: bool, patch: int) -> None:
    state = official_state(is_sit=is_sit, patch=patch)
    x, time, label = inputs()
    expected = transcription(state, x, time, label)
    config = {"num_heads": HEADS} if is_sit else None
    double = from_official(state, config)
    torch.testing.assert_close(double(x, time, label), expected, rtol=1e-10, atol=1e-10)
    single = from_official({name: value.float() for name, value in state.items()}, config)
    error = (single(x.float(), time.float(), label).double() - expected).abs().max()
    assert error <= 1e-5 * expected.abs().max()


def test_tables_of_a_new_model_are_the_official_ones() -> None:
    state = official_state(dtype=torch.float32)
    tables = {"pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin"}
    model = from_official(state)
    # A model built from the same config, without the checkpoint's tables.
    fresh = type(model)(**{key: value for key, value in model.config.items() if not key.startswith("_")})
    torch.testing.assert_close(fresh.position_table(), state["pos_embed"][0], rtol=0, atol=1e-7)
    torch.testing.assert_close(fresh.rotary()[0], state["feat_rope.freqs_cos"], rtol=0, atol=1e-7)
    torch.testing.assert_close(fresh.rotary()[1], state["feat_rope.freqs_sin"], rtol=0, atol=1e-7)
    # Without rotary tables in the file, those of the grid are taken.
    bare = {name: value for name, value in state.items() if name not in tables or name == "pos_embed"}
    derived = from_official(bare, {"use_rotary": True, "num_heads": HEADS})
    torch.testing.assert_close(derived.rotary(), model.rotary(), rtol=0, atol=1e-7)


def test_checkpoint_container_prefix_and_own_copy() -> None:
    state = official_state(dtype=torch.float32)
    wrapped = {"model": {}, "ema": {f"module.{name}": value for name, value in state.items()}, "opt": {"lr": 1}}
    model = from_official(wrapped)
    weight = model.blocks[0].attention.qkv.weight
    assert torch.equal(weight, state["blocks.0.attn.qkv.weight"])
    state["blocks.0.attn.qkv.weight"].zero_()
    assert weight.abs().sum() > 0
    assert not model.training
    assert model.config.mlp_ratio == 4.0


def test_statistics_and_sampling_with_the_three_channel_quirk() -> None:
    state = official_state()
    mean, std = torch.randn(1, CHANNELS, 1, 1), torch.rand(1, CHANNELS, 1, 1) + 0.5
    statistics = statistics_from_official({"mean": mean, "std": std})
    model = from_official(state, {"latent_mean": list(statistics.mean), "latent_std": list(statistics.std)})
    label = torch.tensor([2, 6])
    settings = FlowSettings(num_steps=4, guidance_scale=4.0, cfg_channels=3, guidance_start=0.1)
    made = model.generate(label, settings, rng=torch.Generator().manual_seed(3)).levels[0]

    x = torch.randn(2, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(3)).double()
    grid = [0.3 * t / (1 - 0.7 * t) for t in (0, 0.25, 0.5, 0.75, 1)]
    for t, following in itertools.pairwise(grid):
        time = torch.full((2,), t, dtype=torch.float64)
        v = transcription(state, x, time, label)
        if t >= 0.1:
            null = transcription(state, x, time, torch.tensor([CLASSES, CLASSES]))
            v[:, :3] = null[:, :3] + 4 * (v - null)[:, :3]
        x = x + (following - t) * v
    expected = (x * std + mean).flatten(2).transpose(1, 2)
    torch.testing.assert_close(made, expected, rtol=1e-6, atol=1e-6)


def test_refusals() -> None:
    state = official_state(dtype=torch.float32)

    def without(name: str) -> dict[str, Tensor]:
        return {key: value for key, value in state.items() if key != name}

    for broken, message in (
        (without("pos_embed"), "lacks tensor 'pos_embed'"),
        (without("blocks.1.attn.proj.bias"), r"missing 'blocks\.1\.attn\.proj\.bias'"),
        (without("feat_rope.freqs_sin"), r"missing 'feat_rope\.freqs_cos and feat_rope\.freqs_sin'"),
        ({**state, "surprise": torch.zeros(1)}, "unexpected 'surprise'"),
        ({**state, "blocks.1.attn.proj.bias": torch.zeros(3)}, r"'blocks\.1\.attn\.proj\.bias' has shape \(3,\)"),
        ({**state, "x_embedder.proj.weight": torch.zeros(3)}, r"'x_embedder\.proj\.weight' has shape \(3,\)"),
        ({**state, "pos_embed": torch.zeros(1, 15, DIM)}, "holds 15 positions"),
        ({**state, "epoch": 3}, "entry 'epoch' of the state dict is a int"),
        ({key: value for key, value in state.items() if not key.startswith("blocks")}, "lacks tensors 'blocks.0'"),
        (official_state(is_sit=True), "no tensor tells the heads of a model of dim 24"),
    ):
        with pytest.raises(ValueError, match=message):
            from_official(broken)
    with pytest.raises(ValueError, match="statistic 'std' is nothing"):
        statistics_from_official({"mean": torch.zeros(1, 2, 1, 1)})
    with pytest.raises(ValueError, match=r"statistic 'mean' is shape \(2, 1\)"):
        statistics_from_official({"mean": torch.zeros(2, 1)})
    with pytest.raises(ValueError, match="config entry 'widht' is no setting of"):
        from_official(state, {"widht": 1})
