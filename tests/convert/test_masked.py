"""MAR's program, transcribed plainly from its description in float64, against the converted model on the same random weights."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hiergen.convert.masked import from_official
from hiergen.generators.masked.model import MaskedAR, MaskedARSettings
from hiergen.generators.masked.orders import MaskedDraws
from hiergen.pretrained.weights import read_checkpoint
from hiergen.pyramid import TokenPyramid

N, C, D, BUFFER, WIDTH, HEADS = 9, 4, 32, 3, 24, 4
Weights = dict[str, Tensor]


def official_weights(*, depth: int = 2, head_depth: int = 2, classes: int = 5) -> Weights:
    """Return random float64 tensors in the official layout."""
    shapes: dict[str, tuple[int, ...]] = {
        "class_emb.weight": (classes, D),
        "fake_latent": (1, D),
        "encoder_pos_embed_learned": (1, BUFFER + N, D),
        "decoder_pos_embed_learned": (1, BUFFER + N, D),
        "diffusion_pos_embed_learned": (1, N, D),
        "mask_token": (1, 1, D),
    }
    linear = {"z_proj": (D, C), "decoder_embed": (D, D)}
    norms = {"z_proj_ln": D, "encoder_norm": D, "decoder_norm": D}
    for part in ("encoder", "decoder"):
        for i in range(depth):
            block = f"{part}_blocks.{i}"
            norms |= {f"{block}.norm1": D, f"{block}.norm2": D}
            linear |= {f"{block}.attn.qkv": (3 * D, D), f"{block}.attn.proj": (D, D)}
            linear |= {f"{block}.mlp.fc1": (4 * D, D), f"{block}.mlp.fc2": (D, 4 * D)}
    net = "diffloss.net"
    linear |= {f"{net}.time_embed.mlp.0": (WIDTH, 256), f"{net}.time_embed.mlp.2": (WIDTH, WIDTH)}
    linear |= {f"{net}.cond_embed": (WIDTH, D), f"{net}.input_proj": (WIDTH, C)}
    for k in range(head_depth):
        block = f"{net}.res_blocks.{k}"
        norms[f"{block}.in_ln"] = WIDTH
        linear |= {f"{block}.mlp.0": (WIDTH, WIDTH), f"{block}.mlp.2": (WIDTH, WIDTH)}
        linear[f"{block}.adaLN_modulation.1"] = (3 * WIDTH, WIDTH)
    final = f"{net}.final_layer"
    linear |= {f"{final}.linear": (2 * C, WIDTH), f"{final}.adaLN_modulation.1": (2 * WIDTH, WIDTH)}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, width in norms.items():
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    rng = torch.Generator().manual_seed(3)
    weights = {}
    for name, shape in sorted(shapes.items()):
        values = torch.randn(shape, generator=rng, dtype=torch.float64)
        weights[name] = 1 + 0.2 * values if name.removesuffix(".weight") in norms else values / math.sqrt(shape[-1])
    # Small, so that a chain of many steps stays of order one.
    weights[f"{final}.linear.weight"] *= 0.1
    return weights


def _linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _norm(x: Tensor, eps: float, w: Weights | None = None, name: str = "") -> Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + eps).sqrt()
    return x if w is None else x * w[f"{name}.weight"] + w[f"{name}.bias"]


def _block(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    b, n, _ = x.shape
    qkv = _linear(w, f"{name}.attn.qkv", _norm(x, eps, w, f"{name}.norm1"))
    query, key, value = qkv.reshape(b, n, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(-1, -2) / math.sqrt(D // HEADS)).softmax(-1)
    x = x + _linear(w, f"{name}.attn.proj", (weights @ value).transpose(1, 2).reshape(b, n, D))
    inner = _linear(w, f"{name}.mlp.fc1", _norm(x, eps, w, f"{name}.norm2"))
    inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
    return x + _linear(w, f"{name}.mlp.fc2", inner)


def reference_z(w: Weights, tokens: Tensor, mask: Tensor, buffer: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Return z at all N places; `mask` is True where hidden, `buffer` the condition's rows (b, BUFFER, D)."""
    x = torch.cat((buffer, _linear(w, "z_proj", tokens)), dim=1) + w["encoder_pos_embed_learned"]
    x = _norm(x, 1e-6, w, "z_proj_ln")
    kept = torch.cat((torch.ones(len(mask), BUFFER, dtype=torch.bool), ~mask), dim=1)
    x = x[kept].reshape(len(mask), -1, D)
    depth = sum(name.startswith("encoder_blocks") and name.endswith("norm1.bias") for name in w)
    for i in range(depth):
        x = _block(w, f"encoder_blocks.{i}", x, eps)
    x = _linear(w, "decoder_embed", _norm(x, eps, w, "encoder_norm"))
    full = w["mask_token"].expand(len(mask), BUFFER + N, D).clone()
    full[kept] = x.reshape(-1, D)
    x = full + w["decoder_pos_embed_learned"]
    for i in range(depth):
        x = _block(w, f"decoder_blocks.{i}", x, eps)
    return _norm(x, eps, w, "decoder_norm")[:, BUFFER:] + w["diffusion_pos_embed_learned"]


def reference_head(w: Weights, x: Tensor, t: Tensor, z: Tensor, *, angle_dtype: torch.dtype = torch.float64) -> Tensor:
    """Return noise and variance fraction. `angle_dtype` is that of the sinusoids' angles, part of the model's definition."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=angle_dtype) / 128)
    angles = t[:, None].to(angle_dtype) * frequencies
    features = torch.cat((angles.cos(), angles.sin()), dim=-1).double()
    net = "diffloss.net"
    silu = torch.nn.functional.silu
    time = _linear(w, f"{net}.time_embed.mlp.2", silu(_linear(w, f"{net}.time_embed.mlp.0", features)))
    y = time + _linear(w, f"{net}.cond_embed", z)
    h = _linear(w, f"{net}.input_proj", x)
    for k in range(sum(name.endswith("in_ln.bias") for name in w)):
        block = f"{net}.res_blocks.{k}"
        shift, scale, gate = _linear(w, f"{block}.adaLN_modulation.1", silu(y)).chunk(3, dim=-1)
        inner = _norm(h, 1e-6, w, f"{block}.in_ln") * (1 + scale) + shift
        h = h + gate * _linear(w, f"{block}.mlp.2", silu(_linear(w, f"{block}.mlp.0", inner)))
    shift, scale = _linear(w, f"{net}.final_layer.adaLN_modulation.1", silu(y)).chunk(2, dim=-1)
    return _linear(w, f"{net}.final_layer.linear", _norm(h, 1e-6) * (1 + scale) + shift)


def _chain(timesteps: list[int]) -> list[tuple[int, float, float]]:
    """Return (timestep, abar, abar of the one before) of a respaced chain, ascending."""

    def abar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    full = [1.0]
    for i in range(1000):
        full.append(full[-1] * (1 - min(1 - abar((i + 1) / 1000) / abar(i / 1000), 0.999)))
    products = [full[t + 1] for t in timesteps]
    return list(zip(timesteps, products, [1.0, *products[:-1]], strict=True))


def reference_loss(
    w: Weights, x0: Tensor, z: Tensor, t: Tensor, noise: Tensor, *, angle_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return squared error and bound of each row, (rows,)."""
    chain = _chain(list(range(1000)))
    variances = [(1 - now / before) * (1 - before) / (1 - now) for _, now, before in chain]
    variances[0] = variances[1]
    now, before = (torch.tensor([chain[int(i)][k] for i in t], dtype=torch.float64)[:, None] for k in (1, 2))
    low = torch.tensor([variances[int(i)] for i in t], dtype=torch.float64).log()[:, None]
    beta = 1 - now / before
    x_t = now.sqrt() * x0 + (1 - now).sqrt() * noise
    eps, v = reference_head(w, x_t, t, z, angle_dtype=angle_dtype).chunk(2, dim=-1)
    guess = (x_t - (1 - now).sqrt() * eps) / now.sqrt()
    gap = before.sqrt() * beta / (1 - now) * (x0 - guess)
    log_variance = (v + 1) / 2 * beta.log() + (1 - v) / 2 * low
    bound = 0.5 * (log_variance - low + (low - log_variance).exp() + gap**2 * (-log_variance).exp() - 1)
    inverse = (-0.5 * log_variance).exp()

    def phi(a: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))

    upper, lower = phi(inverse * (x0 - guess + 1 / 255)), phi(inverse * (x0 - guess - 1 / 255))
    bins = (upper - lower).clamp(min=1e-12).log()
    bins = torch.where(x0 > 0.999, (1 - lower).clamp(min=1e-12).log(), bins)
    bins = torch.where(x0 < -0.999, upper.clamp(min=1e-12).log(), bins)
    bound = torch.where(t[:, None] == 0, -bins, bound)
    return ((noise - eps) ** 2).mean(-1), bound.mean(-1) / math.log(2)


CONFIG: dict[str, Any] = {
    "encoder_heads": HEADS,
    "decoder_heads": HEADS,
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "latent_multiplier": 1.0,
}


def _converted(w: Weights, dtype: torch.dtype, **config: Any) -> MaskedAR:
    return from_official({name: value.to(dtype) for name, value in w.items()}, {**CONFIG, **config})


def _inputs(
    seed: int = 0, *, batch: int = 3, copies: int = 2, num_masked: int = 6
) -> tuple[Tensor, Tensor, MaskedDraws]:
    rng = torch.Generator().manual_seed(seed)
    model = _converted(official_weights(), torch.float64, diffusion_batch_mul=copies)
    tokens = torch.randn(batch, N, C, generator=rng, dtype=torch.float64)
    order = torch.rand(batch, N, generator=rng).argsort(1)
    t = torch.randint(1000, (copies, batch, num_masked), generator=rng)
    t[0, 0, :2] = torch.tensor([0, 999])
    noise = torch.randn(copies, batch, num_masked, C, generator=rng, dtype=torch.float64)
    drop = torch.tensor([False, True, False])[:batch]
    labels = torch.randint(5, (batch,), generator=rng)
    return tokens, labels, MaskedDraws(model.stages[0], num_masked, order, None, None, drop, t, noise)


def _buffer(w: Weights, labels: Tensor, drop: Tensor) -> Tensor:
    rows = torch.where(drop[:, None], w["fake_latent"], w["class_emb.weight"][labels])
    return rows[:, None].expand(-1, BUFFER, -1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-6)])
@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_loss_is_the_official_one(dtype: torch.dtype, tolerance: float, eps: float) -> None:
    w = official_weights()
    if dtype == torch.float32:
        w = {name: value.float().double() for name, value in w.items()}
    tokens, labels, draws = _inputs()
    tokens = tokens.to(dtype).double()
    mask = torch.zeros(3, N, dtype=torch.bool).scatter(1, draws.order[:, : draws.num_masked], True)
    assert draws.drop is not None
    z = reference_z(w, tokens, mask, _buffer(w, labels, draws.drop), eps=eps)
    # The official program has a timestep and a noise for every place and lets the mask choose.
    index = draws.order[:, : draws.num_masked, None]
    rows = z.gather(1, index.expand(-1, -1, D)).expand(2, -1, -1, -1).reshape(-1, D)
    x0 = tokens.gather(1, index.expand(-1, -1, C)).expand(2, -1, -1, -1).reshape(-1, C)
    noise = draws.noise.to(dtype)
    mse, bound = reference_loss(
        w, x0, rows, draws.timesteps.flatten(), noise.double().reshape(-1, C), angle_dtype=dtype
    )
    model = _converted(w, dtype, norm_eps=eps)
    given = MaskedDraws(**{**vars(draws), "noise": noise})
    ours = model.loss_of_draws(tokens.to(dtype), labels, given)
    for name, value in (("mse", mse.mean()), ("vb", bound.mean()), ("loss", (mse + bound).mean())):
        assert float(ours[name].detach()) == pytest.approx(float(value), rel=tolerance), name
    prefix = model.prefix(labels, drop=draws.drop)
    seen = model(tokens.to(dtype), draws.order, draws.num_masked, prefix).detach()
    wanted = z.gather(1, index.expand(-1, -1, D))
    assert float((seen.double() - wanted).abs().max() / wanted.abs().max()) <= tolerance


def test_epsilon_makes_a_visible_difference() -> None:
    w = {name: value * (0.02 if "pos_embed" in name else 1.0) for name, value in official_weights().items()}
    tokens, labels, draws = _inputs()
    mask = torch.zeros(3, N, dtype=torch.bool).scatter(1, draws.order[:, : draws.num_masked], True)
    assert draws.drop is not None
    buffer = _buffer(w, labels, draws.drop)
    small, large = (reference_z(w, tokens, mask, buffer, eps=eps) for eps in (1e-6, 1e-5))
    assert float((small - large).abs().max()) > 1e-7


def _reference_generate(w: Weights, labels: Tensor, settings: MaskedARSettings, rng: torch.Generator) -> Tensor:
    """The official loop with explicit masks, z at every place, and noise in our order of draws."""
    batch, steps = len(labels), settings.num_steps
    assert isinstance(steps, int)
    chain = _chain([round(i * 999 / (settings.head_steps - 1)) for i in range(settings.head_steps)])
    order = torch.rand(batch, N, generator=rng).argsort(dim=1, stable=True)
    guided = settings.guidance_scale != 1
    keep = torch.zeros(batch, dtype=torch.bool)
    tokens, mask = torch.zeros(batch, N, C, dtype=torch.float64), torch.ones(batch, N, dtype=torch.bool)
    for step in range(steps):
        z = reference_z(w, tokens, mask, _buffer(w, labels, keep))
        null_z = reference_z(w, tokens, mask, _buffer(w, labels, ~keep))
        hidden = max(1, min(int(mask[0].sum()) - 1, math.floor(N * math.cos(math.pi / 2 * (step + 1) / steps))))
        next_mask = torch.zeros_like(mask).scatter(1, order[:, :hidden], True)
        predict = mask if step == steps - 1 else mask ^ next_mask
        count = int(predict[0].sum())
        # Our noise is laid out by the order, not by place: bring it to the places.
        noise = torch.randn(settings.head_steps, batch, count, C, generator=rng, dtype=torch.float64)
        left = 0 if step == steps - 1 else hidden
        queries = order[:, left : left + count]
        placed = torch.zeros(settings.head_steps, batch, N, C, dtype=torch.float64)
        for sample in range(batch):
            placed[:, sample, queries[sample]] = noise[:, sample]
        scale = 1 + (settings.guidance_scale - 1) * (N - hidden) / N
        x = placed[0][predict]
        for i, (t, now, before) in enumerate(reversed(chain)):
            times = torch.full((len(x),), t)
            eps, v = reference_head(w, x, times, z[predict]).chunk(2, dim=-1)
            if guided:
                null_eps = reference_head(w, x, times, null_z[predict]).chunk(2, dim=-1)[0]
                eps = null_eps + scale * (eps - null_eps)
            beta = 1 - now / before
            guess = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
            x = (math.sqrt(before) * beta * guess + math.sqrt(1 - beta) * (1 - before) * x) / (1 - now)
            if i < len(chain) - 1:
                low, high = math.log(beta * (1 - before) / (1 - now)), math.log(beta)
                deviation = torch.exp(0.5 * ((v + 1) / 2 * high + (1 - v) / 2 * low))
                x = x + settings.temperature * deviation * placed[i + 1][predict]
        tokens[predict] = x
        mask = next_mask
    return tokens


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_generation_is_the_official_loop(guidance: float) -> None:
    w, labels = official_weights(), torch.tensor([1, 4])
    settings = MaskedARSettings(num_steps=4, guidance_scale=guidance, temperature=0.9, head_steps=6)
    theirs = _reference_generate(w, labels, settings, torch.Generator().manual_seed(5))
    model = _converted(w, torch.float64)
    ours = model.generate(labels, settings, rng=torch.Generator().manual_seed(5)).levels[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max()))


def test_sizes_and_facts_of_the_published_models() -> None:
    model = from_official(official_weights(), {"encoder_heads": HEADS, "decoder_heads": HEADS})
    assert model.config["latent_multiplier"] == 0.2325
    assert model.config["norm_eps"] == 1e-6
    assert model.config["level_specs"][0] == {"num_tokens": N, "grid": [3, 3], "dim": C, "vocab_size": None}
    assert (model.config["num_classes"], model.config["num_buffer"]) == (5, BUFFER)
    assert not model.training
    latents = torch.randn(2, N, C, dtype=torch.float64)
    torch.testing.assert_close(model.standardize(latents), latents * 0.2325)
    TokenPyramid((latents,), model.specs)


def test_training_checkpoints_give_their_averaged_weights() -> None:
    w = official_weights()
    other = {name: value + 1 for name, value in w.items()}
    heads = {"encoder_heads": HEADS, "decoder_heads": HEADS}
    model = from_official({"model": other, "model_ema": w, "epoch": 3, "args": object()}, heads)
    assert torch.equal(model.transformer.mask_token, w["mask_token"])
    assert torch.equal(from_official({"model": other}, heads).transformer.mask_token, other["mask_token"])
    # The model does not share memory with the checkpoint.
    w["mask_token"].zero_()
    assert model.transformer.mask_token.abs().sum() > 0


def test_published_files_hold_their_command_line_and_still_load(tmp_path: Path) -> None:
    w = official_weights()
    torch.save({"model_ema": w, "args": argparse.Namespace(lr=1e-4), "epoch": 3}, tmp_path / "checkpoint-last.pth")
    model = from_official(read_checkpoint(str(tmp_path / "checkpoint-last.pth")), CONFIG)
    assert torch.equal(model.transformer.mask_token, w["mask_token"])


def test_errors_name_the_tensor() -> None:
    w = official_weights()
    with pytest.raises(ValueError, match="encoder width 32 is not a published one"):
        from_official(w)
    with pytest.raises(ValueError, match=r"lacks tensor 'class_emb.weight'"):
        from_official({name: value for name, value in w.items() if name != "class_emb.weight"}, CONFIG)
    for name in ("decoder_blocks.1.attn.qkv.bias", "diffloss.net.res_blocks.1.adaLN_modulation.1.weight"):
        with pytest.raises(ValueError, match=f"missing '{name}'"):
            from_official({key: value for key, value in w.items() if key != name}, CONFIG)
    with pytest.raises(ValueError, match="unexpected 'surprise'"):
        from_official({**w, "surprise": torch.zeros(1)}, CONFIG)
    with pytest.raises(ValueError, match=r"'encoder_norm.weight' has shape \(7,\), expected \(32,\)"):
        from_official({**w, "encoder_norm.weight": torch.zeros(7)}, CONFIG)
    with pytest.raises(ValueError, match=r"tensor 'z_proj.weight' has shape"):
        from_official({**w, "z_proj.weight": torch.zeros(7)}, CONFIG)
    with pytest.raises(ValueError, match=r"lacks tensors 'encoder_blocks.0' and following"):
        from_official({key: value for key, value in w.items() if not key.startswith("encoder_blocks")}, CONFIG)
