"""The converter and the single-level model against a transcription of the released forward pass in plain loops, float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

import hiergen
from hiergen.__main__ import main
from hiergen.convert.shape_vae import from_official
from hiergen.tokenizers.pyramid_vae.model import PyramidVAE

LEARNED = {
    "heads": 2,
    "width": 12,
    "embed_dim": 5,
    "num_latents": 4,
    "encoder": 1,
    "decoder": 2,
    "freqs": 3,
    "bias": True,
}
FARTHEST = {**LEARNED, "heads": 3, "encoder": 2, "decoder": 1, "bias": False, "farthest": True, "include_pi": True}


def official_weights(size: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return random weights in the released layout; the farthest-point variant embeds normals and has no last norm."""
    w, e, embed = size["width"], size["embed_dim"], 3 * (2 * size["freqs"] + 1)
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, into: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (out, into)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def block(name: str, cross: bool) -> None:
        for part, factor in (("c_q", 1), ("c_kv", 2)) if cross else (("c_qkv", 3),):
            linear(f"{name}.attn.{part}", factor * w, w, size["bias"])
        linear(f"{name}.attn.c_proj", w, w)
        for index in (1, 2, 3) if cross else (1, 2):
            shapes[f"{name}.ln_{index}.weight"] = shapes[f"{name}.ln_{index}.bias"] = (w,)
        linear(f"{name}.mlp.c_fc", 4 * w, w)
        linear(f"{name}.mlp.c_proj", w, 4 * w)

    if not size.get("farthest"):
        shapes["encoder.query"] = (size["num_latents"], w)
        shapes["encoder.ln_post.weight"] = shapes["encoder.ln_post.bias"] = (w,)
    linear("encoder.input_proj", w, 2 * embed if size.get("farthest") else embed + 3)
    block("encoder.cross_attn", True)
    for index in range(size["encoder"]):
        block(f"encoder.self_attn.resblocks.{index}", False)
    linear("pre_kl", 2 * e, w)
    linear("post_kl", w, e)
    for index in range(size["decoder"]):
        block(f"transformer.resblocks.{index}", False)
    linear("decoder.query_proj", w, embed)
    block("decoder.cross_attn_decoder", True)
    shapes["decoder.ln_post.weight"] = shapes["decoder.ln_post.bias"] = (w,)
    linear("decoder.output_proj", 1, w)
    return {name: torch.randn(shape, dtype=torch.float64).to(dtype) * 0.3 for name, shape in shapes.items()}


class Transcription:
    """The released forward pass for one shape, written from its description: numbers, loops over heads, nothing shared."""

    def __init__(self, weights: dict[str, Tensor], size: dict[str, Any]) -> None:
        self.w, self.size = weights, size

    def embed(self, points: Tensor) -> Tensor:
        scale = math.pi if self.size.get("include_pi") else 1.0
        columns = [points[:, c] for c in range(3)]
        for function in (torch.sin, torch.cos):
            columns += [function(points[:, c] * 2**f * scale) for c in range(3) for f in range(self.size["freqs"])]
        return torch.stack(columns, dim=1)

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = x @ self.w[f"{name}.weight"].T
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def norm(self, name: str, x: Tensor) -> Tensor:
        centered = x - x.mean(1, keepdim=True)
        unit = centered / (centered.square().mean(1, keepdim=True) + 1e-5).sqrt()
        return unit * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def mlp(self, name: str, x: Tensor) -> Tensor:
        y = self.linear(f"{name}.c_fc", x)
        return self.linear(f"{name}.c_proj", y * 0.5 * (1 + torch.erf(y / math.sqrt(2))))

    def heads(self, query: Tensor, fused: Tensor, first: int, parts: int) -> Tensor:
        """Attend head by head; `fused` holds `parts` runs of channels in each head, the key is run `first`."""
        k = self.size["width"] // self.size["heads"]
        out = []
        for h in range(self.size["heads"]):
            q = query[:, h * query.shape[1] // self.size["heads"] :][:, :k]
            key, value = (fused[:, (parts * h + first + i) * k : (parts * h + first + i + 1) * k] for i in (0, 1))
            weight = (q @ key.T / math.sqrt(k)).exp()
            out.append(weight / weight.sum(1, keepdim=True) @ value)
        return torch.cat(out, dim=1)

    def cross(self, name: str, x: Tensor, data: Tensor) -> Tensor:
        query = self.linear(f"{name}.attn.c_q", self.norm(f"{name}.ln_1", x))
        fused = self.linear(f"{name}.attn.c_kv", self.norm(f"{name}.ln_2", data))
        x = x + self.linear(f"{name}.attn.c_proj", self.heads(query, fused, 0, 2))
        return x + self.mlp(f"{name}.mlp", self.norm(f"{name}.ln_3", x))

    def self_blocks(self, name: str, count: int, x: Tensor) -> Tensor:
        for index in range(count):
            prefix = f"{name}.resblocks.{index}"
            fused = self.linear(f"{prefix}.attn.c_qkv", self.norm(f"{prefix}.ln_1", x))
            x = x + self.linear(f"{prefix}.attn.c_proj", self.heads(fused, fused, 1, 3))
            x = x + self.mlp(f"{prefix}.mlp", self.norm(f"{prefix}.ln_2", x))
        return x

    def encode(self, surface: Tensor) -> tuple[Tensor, Tensor]:
        points, normals = surface[:, :3], surface[:, 3:]
        features = self.embed(normals) if self.size.get("farthest") else normals
        data = self.linear("encoder.input_proj", torch.cat((self.embed(points), features), dim=1))
        if self.size.get("farthest"):
            chosen = [0]
            while len(chosen) < self.size["num_latents"]:
                gaps = ((points[:, None] - points[chosen]) ** 2).sum(-1).min(1).values
                chosen.append(int(np.argmax(gaps.detach().numpy())))
            queries = data[chosen]
        else:
            queries = self.w["encoder.query"]
        x = self.cross("encoder.cross_attn", queries, data)
        x = self.self_blocks("encoder.self_attn", self.size["encoder"], x)
        if "encoder.ln_post.weight" in self.w:
            x = self.norm("encoder.ln_post", x)
        moments = self.linear("pre_kl", x)
        half = moments.shape[1] // 2
        return moments[:, :half], moments[:, half:].clamp(-30, 20)

    def decode(self, tokens: Tensor, points: Tensor) -> Tensor:
        latents = self.self_blocks("transformer", self.size["decoder"], self.linear("post_kl", tokens))
        x = self.linear("decoder.query_proj", self.embed(points))
        x = self.norm("decoder.ln_post", self.cross("decoder.cross_attn_decoder", x, latents))
        return self.linear("decoder.output_proj", x)[:, 0]


def yaml_config(size: dict[str, Any]) -> dict[str, Any]:
    keys = {"heads", "include_pi", "num_latents", "width", "embed_dim"} & set(size)
    return {**{key: size[key] for key in keys}, "flash": True}


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("size", [LEARNED, FARTHEST], ids=["learned", "farthest"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-10)], ids=["fp32", "fp64"])
def test_forward_and_gradients_equal_the_transcription(
    size: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    weights = official_weights(size, dtype)
    model = from_official(weights, yaml_config(size))
    clouds = torch.rand(2, 30, 6, dtype=dtype) * 2 - 1
    points = torch.rand(2, 9, 3, dtype=dtype) * 2 - 1
    exact = {name: value.double().requires_grad_() for name, value in weights.items()}
    transcription = Transcription(exact, size)
    posterior = model.posterior(clouds)
    mean, log_variance = posterior.mean, posterior.log_variance
    pyramid = model.encode(clouds)
    logits = model.decode(pyramid).query(points)
    expected = [transcription.encode(cloud.double()) for cloud in clouds]
    expected_logits = torch.stack(
        [transcription.decode(m, p.double()) for (m, _), p in zip(expected, points, strict=True)]
    )
    assert torch.equal(pyramid.levels[0], mean)
    assert relative_error(mean, torch.stack([m for m, _ in expected])) < tolerance
    assert relative_error(log_variance, torch.stack([v for _, v in expected])) < tolerance
    assert relative_error(logits, expected_logits) < tolerance

    (logits.square().mean() + log_variance.square().mean()).backward()
    (expected_logits.square().mean() + torch.stack([v for _, v in expected]).square().mean()).backward()
    largest = max(value.grad.abs().max() for value in exact.values())
    for parameter in model.parameters():
        (original,) = [name for name, value in weights.items() if torch.equal(value, parameter)]
        # A gradient that nearly cancels (of a query's bias, say) is judged by the size of the others.
        size_of_gradient = max(exact[original].grad.abs().max(), 1e-2 * largest)
        assert (parameter.grad - exact[original].grad).abs().max() < 5 * tolerance * size_of_gradient, original


def test_lightning_checkpoints_with_other_modules_are_read_and_copied() -> None:
    weights = official_weights(LEARNED, torch.float32)
    wrapped = {"state_dict": {f"shape_model.{name}": value for name, value in weights.items()}, "epoch": 3}
    wrapped["state_dict"]["condition.model.weight"] = torch.zeros(2)
    plain, nested = (from_official(source, yaml_config(LEARNED)) for source in (weights, wrapped))
    assert not nested.training
    for name, value in plain.state_dict().items():
        assert torch.equal(value, nested.state_dict()[name])
    weights["encoder.query"].zero_()
    assert plain.query_banks[0].detach().abs().sum() > 0


def test_the_command_writes_a_model_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = official_weights(FARTHEST, torch.float32)
    save_file(weights, tmp_path / "vae.safetensors")
    (tmp_path / "vae.yaml").write_text(yaml.safe_dump(yaml_config(FARTHEST)))
    source, target = str(tmp_path / "vae.safetensors"), str(tmp_path / "out")
    assert main(["convert", "shape-vae", source, target, "--config", str(tmp_path / "vae.yaml")]) == 0
    assert "PyramidVAE of" in capsys.readouterr().out
    expected = from_official(weights, yaml_config(FARTHEST)).state_dict()
    found = hiergen.from_pretrained(target).state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert main(["convert", "shape-vae", source, str(tmp_path / "other")]) == 1
    assert "give config 'heads'" in capsys.readouterr().err


def test_what_the_tensors_show_needs_no_config() -> None:
    size = {**LEARNED, "heads": 1, "width": 64}
    model = from_official(official_weights(size, torch.float32))
    found = {key: model.config[key] for key in ("num_tokens", "token_dim", "width", "num_heads", "encoder_depth")}
    assert found == {"num_tokens": [4], "token_dim": 5, "width": 64, "num_heads": 1, "encoder_depth": 1}
    assert (model.config["decoder_depth"], model.config["num_frequencies"], model.config["point_features"]) == (2, 3, 3)
    assert model.config["qkv_bias"]
    assert model.config["final_encoder_norm"]
    assert model.config["queries"] == "learned"


@pytest.mark.parametrize(("encoder", "decoder", "tensors"), [(8, 16, 335), (16, 32, 623)])
def test_released_sizes_have_the_released_number_of_tensors(encoder: int, decoder: int, tensors: int) -> None:
    with torch.device("meta"):
        model = PyramidVAE(num_tokens=[256], encoder_depth=encoder, decoder_depth=decoder, point_counts=None)
    assert len(model.state_dict()) == tensors
    size = {**LEARNED, "heads": 12, "width": 768, "embed_dim": 64, "num_latents": 256, "freqs": 8}
    with torch.device("meta"):
        weights = official_weights({**size, "encoder": encoder, "decoder": decoder}, torch.float32)
    converted = from_official(weights)
    assert {name: value.shape for name, value in converted.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }


def _without(name: str) -> dict[str, Tensor]:
    weights = official_weights(LEARNED, torch.float32)
    del weights[name]
    return weights


def _with(name: str, value: Tensor) -> dict[str, Tensor]:
    return {**official_weights(LEARNED, torch.float32), name: value}


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda: _without("pre_kl.bias"), {}, "missing 'pre_kl.bias'"),
        (lambda: _without("decoder.query_proj.weight"), {}, "lacks tensor 'decoder.query_proj.weight'"),
        (lambda: _without("encoder.input_proj.weight"), {}, "named 'encoder.input_proj.weight' .* found 0"),
        (lambda: _with("extra.weight", torch.zeros(1)), {}, "unexpected 'extra.weight'"),
        (lambda: _with("pre_kl.bias", torch.zeros(3)), {}, r"'pre_kl.bias' has shape \(3,\), expected \(10,\)"),
        (lambda: _with("post_kl.weight", torch.zeros(3)), {}, r"'post_kl.weight' has shape \(3,\), expected 2 dim"),
        (lambda: _with("decoder.query_proj.weight", torch.zeros(12, 20)), {}, "takes 20 channels"),
        (lambda: _without("encoder.query"), {}, "'encoder.query' is absent.*'num_latents'"),
        (dict, {}, "found 0"),
        (lambda: official_weights(LEARNED, torch.float32), {"heads": 5}, "has width 12: give config 'heads'"),
        (lambda: official_weights(LEARNED, torch.float32), {"heads": None}, "has width 12: give config 'heads'"),
        (lambda: official_weights(LEARNED, torch.float32), {"num_latents": 9}, "= 9, tensor 'encoder.query' says 4"),
        (
            lambda: official_weights(LEARNED, torch.float32),
            {"num_encoder_layers": 16},
            "num_encoder_layers = 16, tensor 'encoder.self_attn.resblocks' says 1",
        ),
    ],
)
def test_what_does_not_fit_is_named(change: Any, config: dict[str, Any], message: str) -> None:
    settings = {"heads": 2, **config}
    if settings["heads"] is None:
        del settings["heads"]
    if "is absent" in message:
        settings.pop("num_latents", None)
    with pytest.raises(ValueError, match=message):
        from_official(change(), settings)
