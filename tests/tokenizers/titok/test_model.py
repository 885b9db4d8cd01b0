from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.registry import create
from hiergen.tokenizers.titok.model import TiTok

SMALL: dict[str, Any] = {"image_size": 8, "patch_size": 2, "encoder_dim": 16, "encoder_depth": 1, "encoder_heads": 2}
SMALL |= {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "num_latent_tokens": 4, "code_dim": 4}
SMALL |= {"cnn_channels": 8, "cnn_multipliers": [1, 2], "cnn_blocks": 1, "cnn_mid_blocks": 1, "cnn_groups": 4}
SMALL |= {"z_channels": 6, "vocab_size": 16, "proxy_vocab_size": 12}
KINDS: dict[str, dict[str, Any]] = {
    "proxy_decoded": {},
    "proxy": {"output": "proxy"},
    "pixels": {"output": "pixels", "projection": "per_token", "normalize_codes": False},
    "continuous": {"output": "pixels", "projection": "per_token", "vocab_size": None},
}


def small(kind: str = "proxy_decoded", **overrides: Any) -> TiTok:
    torch.manual_seed(1)
    return TiTok(**{**SMALL, **KINDS[kind], **overrides})


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("kind", KINDS)
def test_forward_is_encode_and_decode(kind: str) -> None:
    model = small(kind).eval()
    output, pyramid = model(images()), model.encode(images())
    assert torch.equal(output.pyramid.levels[0], pyramid.levels[0])
    torch.testing.assert_close(output.reconstruction, model.decode(pyramid))
    assert model.specs == (LevelSpec(4, dim=4, vocab_size=None if kind == "continuous" else 16),)
    assert model.decodable_levels == (1,)
    assert ("proxy_logits" in output.features) == kind.startswith("proxy")


def test_the_published_projection_mixes_all_tokens_and_the_corrected_one_none() -> None:
    for projection, mixes in (("reinterpreted", True), ("per_token", False)):
        model = small(projection=projection)
        latents, tokens = model.encode_latents(images(1))
        (gradient,) = torch.autograd.grad(latents[0, 1].sum(), tokens)
        assert ((gradient[0].abs().amax(1) > 0).tolist()) == [mixes, True, mixes, mixes]


@pytest.mark.parametrize("kind", ["proxy_decoded", "pixels", "continuous"])
def test_the_loss_of_one_batch_falls(kind: str) -> None:
    model, x, losses = small(kind).train(), images(4), []
    optimizer, rng = torch.optim.Adam(model.parameters(), 5e-3), torch.Generator().manual_seed(0)
    for _ in range(40):
        output = model(x, rng=rng)
        loss = (output.reconstruction - x).square().mean() + sum(output.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_each_stage_trains_its_own_parts() -> None:
    """Stage 1: all but the parts of proxy codes. Stage 2: the decoder, its head, and the parts of proxy codes."""
    first, second = small("proxy"), small(freeze_encoder=True)
    proxy = {"proxy_codebook", "pixel_decoder"}
    for model, trained in (
        (first, {"encoder", "to_code", "quantizer", "decoder", "head"}),
        (second, {"decoder", "head"} | proxy),
    ):
        assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == trained
    output = first.train()(images())
    assert not output.reconstruction.requires_grad
    assert output.features["proxy_logits"].requires_grad
    output = second.train()(images())
    assert output.losses == {}
    output.reconstruction.sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in second.parameters())


def test_proxy_parts_are_copied_from_their_tokenizer() -> None:
    sizes = {name: SMALL[name] for name in SMALL if name.startswith(("cnn_", "z_", "image"))}
    source = create("maskgit-vq", **sizes, vocab_size=12)
    model = small("proxy").eval()
    model.take_proxy(source)
    pyramid = model.encode(images())
    likeliest = TokenPyramid((model.proxy_logits(pyramid).argmax(-1),), source.specs)
    # The shortcut differs between the presets, so the whole image tells.
    model = small("proxy", cnn_shortcut=source.config["cnn_shortcut"]).eval()
    model.take_proxy(source)
    torch.testing.assert_close(model.decode(pyramid), source.decode(likeliest))
    with pytest.raises(
        ValueError, match=r"proxy codes are LevelSpec\(.*vocab_size=9\), expected a grid of \(4, 4\), 6 c"
    ):
        model.take_proxy(create("maskgit-vq", **sizes, vocab_size=9))
    with pytest.raises(ValueError, match="output is 'pixels', expected 'proxy' or 'proxy_decoded'"):
        small("pixels").take_proxy(source)


def test_what_a_model_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size is 16, expected None for a model with a posterior"):
        small().posterior(images())
    model = small("pixels")
    with pytest.raises(ValueError, match="output is 'pixels', expected 'proxy' or 'proxy_decoded'"):
        model.proxy_logits(model.encode(images()))
    with pytest.raises(ValueError, match="images have shape"):
        model.encode(torch.zeros(1, 3, 9, 9))
    with pytest.raises(ValueError, match="they come from another tokenizer"):
        model.decode(TokenPyramid((torch.zeros(1, 5, dtype=torch.int64),), (LevelSpec(5, dim=4, vocab_size=16),)))


def test_continuous_tokens_are_the_mode_unless_they_are_drawn() -> None:
    model = small("continuous").eval()
    mean = model.posterior(images()).mean
    assert torch.equal(model.encode(images()).levels[0], mean.mT)
    drawn = [model.encode(images(), rng=torch.Generator().manual_seed(seed)).levels[0] for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_is_equal(kind: str, tmp_path: Path) -> None:
    model = small(kind).eval()
    model.save_pretrained(tmp_path)
    loaded = TiTok.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    torch.testing.assert_close(loaded(images()).reconstruction, model(images()).reconstruction)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_agrees_roughly(kind: str) -> None:
    model = small(kind).eval()
    pyramid = model.encode(images())
    wide = model.decode(pyramid)
    narrow = torch.nn.Module.to(model, torch.bfloat16)
    pyramid = pyramid.to(dtype=torch.bfloat16)
    if kind != "proxy":
        assert float((narrow.decode(pyramid).float() - wide).detach().abs().max()) < 0.1
    assert narrow.encode(images().bfloat16()).levels[0].shape == pyramid.levels[0].shape
    if kind != "pixels" and kind != "continuous":
        assert narrow.pixel_decoder.conv_in.weight.dtype == torch.float32


@torch.no_grad()
def test_weights_start_as_published() -> None:
    model = TiTok(**{**SMALL, **KINDS["pixels"], "encoder_dim": 128, "encoder_heads": 2})
    block = model.encoder.blocks[0]
    assert block.attn.qkv.weight.abs().max() <= (6 / (4 * 128)) ** 0.5
    assert abs(float(block.attn.qkv.weight.std()) - (2 / (4 * 128)) ** 0.5) < 2e-3
    assert abs(float(block.mlp.fc1.weight.std()) - 0.02) < 1e-3
    assert abs(float(model.encoder.position_embedding.std()) - 128**-0.5) < 5e-3
    assert abs(float(model.encoder.latent_tokens.std()) - 128**-0.5) < 1e-2
    assert model.quantizer is not None
    assert float(model.quantizer.codebook.abs().max()) <= 1 / 16
