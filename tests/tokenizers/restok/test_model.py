from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.tokenizers.restok.model import ResTok

SMALL: dict[str, Any] = {
    "image_size": 16,
    "cnn_channels": 8,
    "cnn_groups": 4,
    "cnn_multipliers": [1, 1, 2],
    "cnn_blocks": 1,
    "cnn_mid_blocks": 1,
    "z_channels": 8,
    "encoder_dim": 16,
    "encoder_depth": 4,
    "encoder_heads": 2,
    "decoder_dim": 16,
    "decoder_depth": 2,
    "decoder_heads": 1,
    "num_latent_tokens": 16,
    "min_tokens": 2,
    "code_dim": 4,
    "vocab_size": 32,
    "num_image_levels": 3,
}
CORRECTED: dict[str, Any] = {"projection": "per_token", "merge": "average", "cnn_shortcut": "input"}


def small(**overrides: Any) -> ResTok:
    """Return a small model, with random weights that are large enough to make everything depend on everything it may."""
    torch.manual_seed(1)
    model = ResTok(**{**SMALL, **overrides}).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "codebook" not in name:
            torch.nn.init.normal_(parameter, std=0.8 / parameter[0].numel() ** 0.5)
    return model


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1


def level_gradients(model: ResTok) -> Tensor:
    """Return how strongly the codes of every level (rows) depend on the latent tokens of every level (columns)."""
    latents, _ = model.encode_latents(images(1))
    rows = []
    for part in latents.split(list(model.layout.level_sizes), dim=1):
        weights = torch.randn(part.shape, generator=torch.Generator().manual_seed(3))
        (gradient,) = torch.autograd.grad(
            (part * weights).sum(), model.encoder.latent_level_embedding, retain_graph=True
        )
        rows.append(gradient.abs().amax(dim=1))
    return torch.stack(rows)


@pytest.mark.parametrize("multi_projection", [True, False])
def test_codes_of_a_level_depend_on_coarser_levels_only(multi_projection: bool) -> None:
    dependence = level_gradients(small(**CORRECTED, multi_projection=multi_projection)) > 0
    assert torch.equal(dependence, torch.ones_like(dependence).tril())


def test_the_published_projection_mixes_all_levels() -> None:
    assert bool((level_gradients(small()) > 0).all())


@pytest.mark.parametrize("merge", ["even", "average"])
def test_image_tokens_never_see_latents(merge: str) -> None:
    model = small(merge=merge)
    _, tokens = model.encode_latents(images(1))
    assert tokens.shape == (1, 4 if merge == "even" else 1, 16)
    (gradient,) = torch.autograd.grad(tokens.sum(), model.encoder.latent_level_embedding, allow_unused=True)
    assert gradient is None or gradient.count_nonzero() == 0


@pytest.mark.parametrize("overrides", [{}, CORRECTED, {"num_image_levels": 1, "cnn_encoder": False}])
def test_any_allowed_prefix_decodes_and_specs_describe_the_tokens(overrides: dict[str, Any]) -> None:
    model = small(**overrides)
    assert model.specs == tuple(LevelSpec(n, dim=4, vocab_size=32) for n in (1, 1, 2, 4, 8))
    pyramid = model.encode(images()).check_ids()
    decoded = [model.decode(pyramid.prefix(levels)) for levels in range(2, 6)]
    assert all(image.shape == (3, 3, 16, 16) for image in decoded)
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(decoded))


def test_training_decodes_what_the_prefix_decodes() -> None:
    model = small(**CORRECTED, drop_prob=1.0, min_tokens=8)
    output = model.train()(images())
    # Only 8 and 16 tokens are allowed, and 16 has probability 0. Straight-through codes differ from looked-up ones by rounding.
    torch.testing.assert_close(output.reconstruction, model.decode(output.pyramid.prefix(4)), rtol=1e-4, atol=1e-5)
    full = model.eval()(images())
    torch.testing.assert_close(full.reconstruction, model.decode(full.pyramid), rtol=1e-4, atol=1e-5)


def test_nested_dropout_follows_the_rng_and_is_off_in_eval_mode() -> None:
    model = small(drop_prob=0.9).train()
    first, second, third = (
        model(images(), rng=torch.Generator().manual_seed(seed)).reconstruction for seed in (4, 4, 5)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(model.eval()(images()).reconstruction, model(images()).reconstruction)


def test_results_do_not_depend_on_what_else_is_in_the_batch() -> None:
    model, batch = small(), images()
    pyramid = model.encode(batch)
    alone = model.encode(batch[1:2])
    assert torch.equal(alone.concat(), pyramid[1:2].concat())
    torch.testing.assert_close(model.decode(alone), model.decode(pyramid)[1:2], rtol=1e-4, atol=1e-5)


def test_features_for_alignment() -> None:
    model = small(decoder_features=True, drop_prob=0.0).train()
    output = model(images())
    assert {name: tuple(f.shape) for name, f in output.features.items()} == {
        "encoder": (3, 4, 16),
        "decoder": (3, 16, 16),
    }
    # The second pass must not change the first.
    torch.testing.assert_close(output.reconstruction, model.eval()(images()).reconstruction, rtol=1e-4, atol=1e-5)
    assert set(model(images()).features) == {"encoder"}


def test_one_batch_can_be_overfitted_and_every_parameter_learns() -> None:
    model = ResTok(**SMALL, **CORRECTED, drop_prob=0.0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    errors = []
    for _ in range(25):
        output = model(images(2))
        error = (output.reconstruction - images(2)).square().mean()
        optimizer.zero_grad()
        (error + sum(output.losses.values())).backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.8 * errors[0]
    # Nothing was dropped, so the token that stands for dropped codes was never read.
    unused = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert unused == {"decoder.latent_mask_token"}


def test_saved_and_loaded_is_equal_bit_for_bit(tmp_path: Path) -> None:
    model = small(**CORRECTED)
    model.save_pretrained(tmp_path)
    loaded = ResTok.from_pretrained(tmp_path)
    assert loaded.layout == model.layout
    assert not loaded.training
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    ids = model.encode(images())
    assert torch.equal(loaded.encode(images()).concat(), ids.concat())
    torch.testing.assert_close(loaded.decode(ids), model.decode(ids), rtol=1e-4, atol=1e-5)
    half = ResTok.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.encoder.patch_embed.weight.dtype == torch.bfloat16
    assert {p.dtype for p in half.pixel_decoder.parameters()} == {torch.float32}
    assert half.encoder.constants.on(torch.device("cpu"))["rotary_0"].dtype == torch.float32
    assert half.decode(half.encode(images())).isfinite().all()


def test_copies_and_other_dtypes_compute_the_same() -> None:
    model = small(**CORRECTED)
    pyramid = model.encode(images())
    double = copy.deepcopy(model).double()
    assert torch.equal(double.encode(images().double()).concat(), pyramid.concat())
    torch.testing.assert_close(double.decode(pyramid).float(), model.decode(pyramid), rtol=1e-4, atol=1e-5)
    bare = model.state_dict()
    assert not [name for name in bare if "constants" in name or "rotary" in name or "mask_0" in name]


def test_the_pixel_decoder_stays_in_float32_under_autocast() -> None:
    model = small()
    seen: list[torch.dtype] = []
    model.pixel_decoder.mid.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images())
    assert output.reconstruction.dtype == torch.float32
    assert seen == [torch.float32]
    output.losses["quantizer"].backward()


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = small(**CORRECTED, drop_prob=0.0).train()
    gradients = []
    for _ in range(2):
        output = model(images(1))
        (output.reconstruction.square().mean() + output.losses["quantizer"]).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
        model.enable_gradient_checkpointing()
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_compiles_without_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    # Run-time checks of annotations cannot be captured; users do not run under them.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    model = small(**CORRECTED, encoder_depth=2, decoder_depth=1, num_image_levels=2)
    # The "eager" backend runs the captured graph as it is: capture is what is tested.
    compiled = torch.compile(model.encode_latents, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), model.encode_latents(images()))
    codes, present = torch.randn(2, 16, 4), torch.rand(2, 16) < 0.5
    decoder = torch.compile(model.decoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(decoder(codes, present)[0], model.decoder(codes, present)[0])


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(channels: int) -> None:
    model = small(in_channels=channels)
    data = torch.rand(2, channels, 16, 16) * 2 - 1
    assert model.decode(model.encode(data)).shape == data.shape


def test_wrong_inputs_are_refused() -> None:
    model = small(min_tokens=4)
    with pytest.raises(ValueError, match=r"images have shape \(1, 3, 8, 8\), expected \(b, 3, 16, 16\)"):
        model.encode(torch.zeros(1, 3, 8, 8))
    pyramid = model.encode(images())
    with pytest.raises(ValueError, match=r"holds 2 tokens, expected one of \(4, 8, 16\): .* \(min_tokens=4\)"):
        model.decode(pyramid.prefix(2))
    with pytest.raises(ValueError, match="they come from another tokenizer"):
        model.decode(TokenPyramid((torch.zeros(1, 5, dtype=torch.int64),), (LevelSpec(5, vocab_size=32),)))
    with pytest.raises(ValueError, match="num_latent_tokens is 12, expected a power of two"):
        ResTok(num_latent_tokens=12)
