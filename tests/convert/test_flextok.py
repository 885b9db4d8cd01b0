"""FlexTok with official weights against a transcription of its description in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import hiergen
from hiergen.convert.one_dimensional import flextok
from hiergen.tokenizers.flextok.config import FlowDecoding
from hiergen.tokenizers.flextok.model import FlexTok

VAE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
}
TINY: dict[str, Any] = {"image_size": 16, "autoencoder": VAE, "scaling_factor": 0.7, "sample_posterior": True}
TINY |= {"patch_size": 2, "encoder_dim": 16, "encoder_depth": 2, "encoder_heads": 2, "decoder_dim": 24}
TINY |= {"decoder_depth": 2, "decoder_heads": 3, "num_registers": 8, "code_levels": [5, 4, 3], "max_time": 10.0}
#: The official configuration, nested in a way of its own.
CONFIG: dict[str, Any] = {
    "vae": {"_target_": "os.system", "scaling_factor": 0.7, "sample_posterior": True, "norm_num_groups": 4},
    "encoder": {"module_dict": {"enc_seq_packer": {"mask_mode": "causal_last", "n_max": 8}, "patch_sizes": [2, 2]}},
    "decoder": {
        "dec_seq_packer": {"mask_mode": "full"},
        "dec_transformer": {"adaLN_expansion": 2, "head_dim": 8},
        "dec_time_embedder": {"max_timestep": 10.0},
        "dec_nested_dropout": {"size_sampling_mode": "pow2"},
        "dec_latent_dropout": {"dropout_prob": 0.2},
    },
    "regularizer": {"levels": [5, 4, 3]},
}


def tiny() -> FlexTok:
    """Return a model in which every tensor matters."""
    model, rng = FlexTok(**TINY), torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 and "register" not in name else 4
        parameter.data = torch.randn(parameter.shape, generator=rng) * fan**-0.5
    return model.eval()


def changed(**entries: Any) -> dict[str, Any]:
    """Return the official configuration with entries replaced wherever they are; None takes them away."""

    def change(section: dict[str, Any]) -> dict[str, Any]:
        found = {
            key: change(value) if isinstance(value, dict) else entries.get(key, value) for key, value in section.items()
        }
        return {key: value for key, value in found.items() if value is not None}

    return change(CONFIG)


def norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def table(dim: int, side: int) -> Tensor:
    """The published positions `[E, g, g]`: the first half of the channels encodes the row."""
    quarter, found = dim // 4, torch.empty(dim, side, side, dtype=torch.float64)
    for row in range(side):
        for column in range(side):
            for j in range(quarter):
                speed = 10000 ** (-j / quarter)
                numbers = (
                    math.sin(row * speed),
                    math.cos(row * speed),
                    math.sin(column * speed),
                    math.cos(column * speed),
                )
                for part, number in enumerate(numbers):
                    found[part * quarter + j, row, column] = number
    return found


def patches(x: Tensor) -> Tensor:
    """Squares of 2x2 cells: row in the square, column in the square, channel."""
    rows = []
    for row in range(0, x.shape[2], 2):
        for column in range(0, x.shape[3], 2):
            rows.append(torch.cat([x[:, :, row + p, column + q] for p in (0, 1) for q in (0, 1)], dim=1))
    return torch.stack(rows, dim=1)


def attend(w: dict[str, Tensor], name: str, x: Tensor, heads: int, num_patches: int | None) -> Tensor:
    q, k, v = (x @ w[f"{name}.{part}.weight"].T for part in ("wq", "wk", "wv"))
    size, found = x.shape[-1] // heads, []
    for head in range(heads):
        a, b, c = (part[..., head * size : (head + 1) * size] for part in (q, k, v))
        scores = norm(a) @ norm(b).mT * (8 / size)
        if num_patches is not None:
            for i in range(x.shape[1]):
                for j in range(x.shape[1]):
                    if not (j < num_patches or j <= i):
                        scores[:, i, j] = -math.inf
        found.append(scores.softmax(-1) @ c)
    return torch.cat(found, dim=-1) @ w[f"{name}.proj.weight"].T


def mlp(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    hidden = silu(x @ w[f"{name}.fc1.weight"].T) * (x @ w[f"{name}.fc3.weight"].T)
    return hidden @ w[f"{name}.fc2.weight"].T


def plain_encode(w: dict[str, Tensor], cells: Tensor) -> tuple[Tensor, Tensor]:
    """The values and the ids of all registers."""
    e = "encoder.module_dict."
    x = linear(w, f"{e}enc_patch_emb.patch_proj", patches(cells))
    x = x + table(16, 4).flatten(1).T
    x = torch.cat((x, w[f"{e}enc_register_module.registers"].expand(len(x), -1, -1)), dim=1)
    for block in range(2):
        name = f"{e}enc_transformer.blocks.{block}"
        x = x + attend(w, f"{name}.attn", norm(x), 2, 16)
        x = x + mlp(w, f"{name}.mlp", norm(x))
    z = linear(w, f"{e}enc_to_latents.proj", norm(x[:, 16:]))
    values, ids, weight = [], torch.zeros(z.shape[:2], dtype=torch.int64), 1
    for channel, levels in enumerate((5, 4, 3)):
        half, offset = (levels - 1) * 1.001 / 2, 0.0 if levels % 2 else 0.5
        rounded = ((z[..., channel] + math.atanh(offset / half)).tanh() * half - offset).round()
        values.append(rounded / (levels // 2))
        ids += (rounded.long() + levels // 2) * weight
        weight *= levels
    return torch.stack(values, dim=-1), ids


def plain_velocity(w: dict[str, Tensor], x: Tensor, t: float, codes: Tensor, kept: int, is_null: bool) -> Tensor:
    d = "decoder.module_dict."
    r = linear(w, f"{d}dec_from_latents.proj", codes) + w[f"{d}dec_registers_posemb_module.posembs"][0, 0].T
    r[:, kept:] = w[f"{d}dec_nested_dropout.dropout_mask_token"]
    if is_null:
        r[:] = w[f"{d}dec_latent_dropout.nullcond"]
    cells = linear(w, f"{d}dec_noise_patch_emb.patch_proj", patches(x)) + table(24, 4).flatten(1).T
    tokens = torch.cat((cells, r), dim=1)
    speeds = [1000 / 10.0 * 256 ** (-j / 128) for j in range(128)]
    phi = torch.tensor([math.cos(f * t) for f in speeds] + [math.sin(f * t) for f in speeds], dtype=torch.float64)
    e = linear(w, f"{d}dec_time_embedder.mlp.2", silu(linear(w, f"{d}dec_time_embedder.mlp.0", phi)))
    for block in range(2):
        name = f"{d}dec_transformer.blocks.{block}"
        m = linear(w, f"{name}.adaLN_modulation.1", silu(e)).reshape(2, 6, 24)
        ga, gm, ha, sa, hm, sm = (torch.cat((part[:1].expand(16, -1), part[1:].expand(8, -1))) for part in m.unbind(1))
        tokens = tokens + ga * attend(w, f"{name}.attn", norm(tokens) * (1 + sa) + ha, 3, None)
        tokens = tokens + gm * mlp(w, f"{name}.mlp", norm(tokens) * (1 + sm) + hm)
    h, s = linear(w, f"{d}dec_to_patches.adaLN_modulation.1", silu(e)).chunk(2)
    out = linear(w, f"{d}dec_to_patches.proj", norm(tokens[:, :16]) * (1 + s) + h)
    found = torch.empty_like(x)
    for index in range(16):
        row, column = 2 * (index // 4), 2 * (index % 4)
        for p in (0, 1):
            for q in (0, 1):
                found[:, :, row + p, column + q] = out[:, index, (2 * p + q) * 4 : (2 * p + q + 1) * 4]
    return found


def plain_decode(w: dict[str, Tensor], codes: Tensor, noise: Tensor, kept: int, settings: FlowDecoding) -> Tensor:
    x, scale, sums = noise, settings.guidance_scale, torch.zeros_like(noise)
    for step in range(settings.num_steps, 0, -1):
        t = step / settings.num_steps
        v = plain_velocity(w, x, t, codes, kept, False)
        if scale != 1:
            null = plain_velocity(w, x, t, codes, kept, True)
            if settings.guidance == "plain":
                v = null + scale * (v - null)
            else:
                sums = (v - null) - 0.5 * sums
                length = sums.flatten(1).norm(dim=1)[:, None, None, None]
                d = sums * (2.5 / length).clamp(max=1)
                unit = v / v.flatten(1).norm(dim=1)[:, None, None, None]
                v = v + (scale - 1) * (d - (d * unit).sum((1, 2, 3), keepdim=True) * unit)
        x = x - v / settings.num_steps
    return x


def cells(seed: int = 2) -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ids_velocities_and_images_are_the_official_ones(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    official = flextok.to_official(tiny())
    model = flextok.from_official(official, CONFIG).to(dtype)
    w = {name: tensor.double() for name, tensor in official.items()}
    atol = 1e-10 if dtype == torch.float64 else 2e-5
    values, ids = plain_encode(w, cells())
    found = model.quantizer(model.encoder(cells().to(dtype)))
    assert torch.equal(found.ids, ids)
    torch.testing.assert_close(found.codes.double(), values, atol=1e-6, rtol=0)
    # The table that the checkpoint holds is float32; the transcription's is exact.
    for side in (model.encoder, model.decoder):
        stored = side.patch_embed.position_table.value
        torch.testing.assert_close(stored.double(), table(len(stored), 4).flatten(1), atol=1e-7, rtol=0)
        side.patch_embed.position_table.value = table(len(stored), 4).flatten(1)
    for kept, is_null in ((8, False), (3, False), (3, True)):
        wanted = plain_velocity(w, cells(3), 0.37, values, kept, is_null)
        lengths, null = torch.full((2,), kept), torch.full((2,), is_null)
        time = torch.full((2,), 0.37, dtype=dtype)
        velocity = model.decoder(cells(3).to(dtype), time, values.to(dtype), lengths, null)
        assert float((velocity - wanted).abs().max().detach() / wanted.abs().max()) < atol
    monkeypatch.setattr(FlexTok, "_noise", lambda self, batch, rng: cells(4).to(dtype))
    monkeypatch.setattr(FlexTok, "_from_map", lambda self, x: x)
    pyramid = type(model.encode(torch.zeros(2, 3, 16, 16))).split(ids, model.specs)
    for scale, guidance in ((1.0, "plain"), (2.0, "plain"), (7.5, "projected")):
        settings = FlowDecoding(num_steps=3, guidance_scale=scale, guidance=guidance)
        wanted = plain_decode(w, model.quantizer.lookup(ids).double(), cells(4), 5, settings)
        decoded = model.decode(pyramid, settings, num_tokens=5)
        assert float((decoded - wanted).abs().max() / wanted.abs().max()) < 10 * atol


def test_images_go_through_the_scaled_posterior_and_back() -> None:
    model = tiny()
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean = model.vae.encode(x).latent_dist.mode()
    wanted = model.quantizer(model.encoder(0.7 * mean)).ids
    assert torch.equal(model.encode(x).concat(), wanted)
    torch.testing.assert_close(model._from_map(0.7 * mean), model.vae.decode(mean).sample)


def test_the_round_trip_is_exact_and_config_and_license_are_kept() -> None:
    model = tiny()
    official = flextok.to_official(model)
    assert official["encoder.module_dict.enc_posemb_module.posembs"].shape == (1, 16, 4, 4)
    assert official["decoder.module_dict.dec_registers_posemb_module.posembs"].shape == (1, 1, 24, 8)
    wrapped = {name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): x for name, x in official.items()}
    found = flextok.from_official({"model": wrapped, "step": 3}, CONFIG)
    assert all(torch.equal(found.state_dict()[name], value) for name, value in model.state_dict().items())
    for name, value in TINY.items():
        if name != "autoencoder":
            assert found.config[name] == value
    assert (found.config["length_distribution"], found.config["null_prob"]) == ("powers", 0.2)
    assert "research only" in found.config["weights_license"]
    assert not any(parameter.requires_grad for parameter in found.vae.parameters())


@pytest.mark.parametrize("key", ["levels", "max_timestep", "scaling_factor", "sample_posterior"])
def test_what_no_tensor_tells_must_be_in_the_config(key: str) -> None:
    official = flextok.to_official(tiny())
    with pytest.raises(ValueError, match=f"the configuration lacks '{key}', which no tensor tells: give the config.js"):
        flextok.from_official(official, changed(**{key: None}))
    twice = {**CONFIG, "other": {key: 0.123}}
    with pytest.raises(ValueError, match=f"the configuration holds several values of '{key}'"):
        flextok.from_official(official, twice)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"mask_mode": "full"}, r"mask_mode is \['full'\] in the configuration, expected 'causal_last' of the encoder"),
        ({"mask_mode": None}, "mask_mode is missing in the configuration"),
        ({"patch_sizes": [4, 4]}, r"patch_sizes is \[4, 4\] in the configuration, but the tensors say \[2, 2\]"),
        ({"n_max": 16}, "n_max is 16 in the configuration, but the tensors say 8"),
        ({"adaLN_expansion": 1}, "adaLN_expansion is 1 in the configuration, but the tensors say 2"),
        (
            {"size_sampling_mode": "geometric"},
            "size_sampling_mode is 'geometric' in the configuration, expected one of",
        ),
        ({"levels": [5, 4]}, r"tensor 'encoder.module_dict.enc_to_latents.proj.weight' has shape \(3, 16\), expected"),
    ],
)
def test_a_config_that_contradicts_is_refused(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flextok.from_official(flextok.to_official(tiny()), changed(**entries))


def test_tensors_that_do_not_fit_are_named() -> None:
    official = flextok.to_official(tiny())
    with pytest.raises(ValueError, match=r"holds 1 tensors that FlexTok has not: decoder.module_dict.repa.weight"):
        flextok.from_official({**official, "decoder.module_dict.repa.weight": torch.zeros(1)}, CONFIG)
    name = "decoder.module_dict.dec_latent_dropout.nullcond"
    with pytest.raises(ValueError, match=f"lacks tensor '{name}'"):
        flextok.from_official({key: value for key, value in official.items() if key != name}, CONFIG)
    with pytest.raises(ValueError, match=r"lacks tensor 'encoder.module_dict.enc_register_module.registers'"):
        flextok.from_official({"a": torch.zeros(1)}, CONFIG)
    pixels = FlexTok(**{**TINY, "autoencoder": None})
    with pytest.raises(ValueError, match="autoencoder is None; the official program knows only models on"):
        flextok.to_official(pixels)


def test_the_published_layout_has_as_many_tensors() -> None:
    for name, count in (("flextok-d12-d12", 462), ("flextok-d18-d18", 558), ("flextok-d18-d28", 648)):
        with torch.device("meta"):
            official = flextok.to_official(hiergen.create(name))
        assert len(official) == count
        assert sum(key.startswith("encoder.") for key in official) == {462: 90}.get(count, 132)
