"""TiTok and MaskGIT-VQGAN with official weights against a transcription of the specification in float64."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.convert.one_dimensional import maskgit_vq, titok
from hiergen.pyramid import TokenPyramid
from hiergen.registry import create
from hiergen.tokenizers.maskgit_vqgan.model import MaskGITVQ

CNN = {"cnn_channels": 8, "cnn_multipliers": [1, 2], "cnn_blocks": 1, "cnn_mid_blocks": 1, "cnn_groups": 8}
CNN |= {"z_channels": 6, "cnn_shortcut": "branch"}
TINY: dict[str, Any] = {"image_size": 8, "patch_size": 2, "encoder_dim": 16, "encoder_depth": 2, "encoder_heads": 2}
TINY |= {"decoder_dim": 24, "decoder_depth": 1, "decoder_heads": 3, "num_latent_tokens": 5}
HEADS = {"encoder_heads": 2, "decoder_heads": 3}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "two stages": ("titok-l-32", {**TINY, **CNN, "code_dim": 3, "vocab_size": 17, "proxy_vocab_size": 11}),
    "one stage": ("titok-bl-64", {**TINY, "code_dim": 3, "vocab_size": 17}),
    "continuous": ("titok-bl-64-vae", {**TINY, "code_dim": 3}),
}


def randomized(model: Any) -> Any:
    """Return a model in which every tensor matters."""
    rng = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 and "embedding" not in name else 4
        parameter.data = torch.randn(parameter.shape, generator=rng) * fan**-0.5
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.data += 1
    return model.eval()


def official(kind: str) -> dict[str, Tensor]:
    preset, overrides = KINDS[kind]
    return titok.to_official(randomized(create(preset, **overrides)))


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].flatten(1).T + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def plain_blocks(w: dict[str, Tensor], side: str, x: Tensor, heads: int) -> Tensor:
    depth = len({name.split(".")[2] for name in w if name.startswith(f"{side}.transformer.")})
    for layer in range(depth):
        name = f"{side}.transformer.{layer}"
        y = norm(w, f"{name}.ln_1", x)
        rows = y @ w[f"{name}.attn.in_proj_weight"].T + w[f"{name}.attn.in_proj_bias"]
        head_dim, found = x.shape[-1] // heads, []
        for head in range(heads):
            q, k, v = (part[..., head * head_dim : (head + 1) * head_dim] for part in rows.chunk(3, dim=-1))
            found.append((q @ k.mT / math.sqrt(head_dim)).softmax(-1) @ v)
        x = x + linear(w, f"{name}.attn.out_proj", torch.cat(found, dim=-1))
        x = x + linear(w, f"{name}.mlp.c_proj", gelu(linear(w, f"{name}.mlp.c_fc", norm(w, f"{name}.ln_2", x))))
    return x


def plain_encode(w: dict[str, Tensor], x: Tensor, *, legacy: bool) -> Tensor:
    """The latents `(b, C', L)`."""
    weight, bias = w["encoder.patch_embed.weight"], w["encoder.patch_embed.bias"]
    size, batch, dim = weight.shape[-1], len(x), weight.shape[0]
    patches = [
        (x[:, None, :, r : r + size, s : s + size] * weight).sum((2, 3, 4)) + bias
        for r in range(0, x.shape[2], size)
        for s in range(0, x.shape[3], size)
    ]
    front = torch.cat((w["encoder.class_embedding"].expand(batch, 1, dim), torch.stack(patches, dim=1)), dim=1)
    latents = w["latent_tokens"] + w["encoder.latent_token_positional_embedding"]
    sequence = torch.cat((front + w["encoder.positional_embedding"], latents.expand(batch, *latents.shape)), dim=1)
    y = plain_blocks(w, "encoder", norm(w, "encoder.ln_pre", sequence), HEADS["encoder_heads"])
    y = norm(w, "encoder.ln_post", y[:, -len(latents) :])
    columns = []
    for place in range(len(latents)):
        if legacy:
            flat = y.reshape(batch, -1)
            column = torch.stack([flat[:, d * len(latents) + place] for d in range(dim)], dim=1)
        else:
            column = y[:, place]
        columns.append(linear(w, "encoder.conv_out", column))
    return torch.stack(columns, dim=2)


def plain_decode(w: dict[str, Tensor], codes: Tensor) -> Tensor:
    """What the decoder's transformer gives at the mask tokens, `(b, g², D)`."""
    batch, places = len(codes), len(w["decoder.positional_embedding"])
    u = linear(w, "decoder.decoder_embed", codes) + w["decoder.latent_token_positional_embedding"]
    dim = u.shape[-1]
    masks = w["decoder.mask_token"].expand(batch, places - 1, dim)
    m = torch.cat((w["decoder.class_embedding"].expand(batch, 1, dim), masks), dim=1)
    sequence = torch.cat((m + w["decoder.positional_embedding"], u), dim=1)
    x = plain_blocks(w, "decoder", norm(w, "decoder.ln_pre", sequence), HEADS["decoder_heads"])
    return norm(w, "decoder.ln_post", x[:, 1:places])


def plain_conv_block(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    u = x
    for part in (1, 2):
        u = F.silu(F.group_norm(u, 8, w[f"{name}.norm{part}.weight"], w[f"{name}.norm{part}.bias"], eps=1e-6))
        u = F.conv2d(u, w[f"{name}.conv{part}.weight"], padding=1)
    shortcut = f"{name}.nin_shortcut.weight"
    return u + F.conv2d(u, w[shortcut]) if shortcut in w else u + x


def plain_pixels(w: dict[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    """The decoder of MaskGIT-VQGAN: a map to an image in [0, 1]."""
    x = F.conv2d(x, w[f"{prefix}.conv_in.weight"], w[f"{prefix}.conv_in.bias"], padding=1)
    x = plain_conv_block(w, f"{prefix}.mid.0", x)
    for level in (1, 0):
        x = plain_conv_block(w, f"{prefix}.up.{level}.block.0", x)
        if level:
            up = f"{prefix}.up.{level}.upsample_conv"
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = F.conv2d(x, w[f"{up}.weight"], w[f"{up}.bias"], padding=1)
    x = F.silu(F.group_norm(x, 8, w[f"{prefix}.norm_out.weight"], w[f"{prefix}.norm_out.bias"], eps=1e-6))
    return F.conv2d(x, w[f"{prefix}.conv_out.weight"], w[f"{prefix}.conv_out.bias"], padding=1)


def plain_proxy_encode(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """The encoder of MaskGIT-VQGAN: an image in [0, 1] to a map."""
    x = F.conv2d(x, w["encoder.conv_in.weight"], padding=1)
    for level in (0, 1):
        x = plain_conv_block(w, f"encoder.down.{level}.block.0", x)
        if level == 0:
            x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    x = plain_conv_block(w, "encoder.mid.0", x)
    x = F.silu(F.group_norm(x, 8, w["encoder.norm_out.weight"], w["encoder.norm_out.bias"], eps=1e-6))
    return F.conv2d(x, w["encoder.conv_out.weight"], w["encoder.conv_out.bias"])


def nearest(points: Tensor, rows: Tensor) -> Tensor:
    return (points[..., None, :] - rows).square().sum(-1).argmin(-1)


@pytest.mark.parametrize("kind", ["two stages", "one stage"])
def test_discrete_models_compute_what_the_official_program_does(kind: str) -> None:
    tensors = official(kind)
    w = {name: tensor.double() for name, tensor in tensors.items()}
    legacy, x = kind == "two stages", images()
    model = titok.from_official(tensors, HEADS).double()
    z = plain_encode(w, x, legacy=legacy).transpose(1, 2)
    latents, _ = model.encode_latents(2 * x - 1)
    torch.testing.assert_close(latents, z, rtol=1e-10, atol=1e-10)
    book = w["quantize.embedding.weight"]
    if legacy:
        z, book = F.normalize(z, dim=-1), F.normalize(book, dim=-1)
    ids = nearest(z, book)
    pyramid = model.encode(2 * x - 1)
    assert torch.equal(pyramid.levels[0], ids)
    y = plain_decode(w, book[ids])
    if legacy:
        logits = linear(w, "decoder.ffn.2", linear(w, "decoder.ffn.0", y).tanh())
        torch.testing.assert_close(model.proxy_logits(pyramid), logits, rtol=1e-10, atol=1e-10)
        cells = logits.softmax(-1) @ w["pixel_quantize.embedding.weight"]
        expected = plain_pixels(w, "pixel_decoder", cells.mT.reshape(2, 6, 4, 4))
    else:
        flat, expected = linear(w, "decoder.ffn.0", y), torch.zeros(2, 3, 8, 8, dtype=torch.float64)
        for r, s, p1, p2, c in torch.cartesian_prod(*(torch.arange(n) for n in (4, 4, 2, 2, 3))).tolist():
            expected[:, c, 2 * r + p1, 2 * s + p2] = flat[:, 4 * r + s, (2 * p1 + p2) * 3 + c]
        expected = F.conv2d(expected, w["decoder.conv_out.weight"], w["decoder.conv_out.bias"], padding=1)
    torch.testing.assert_close((model.decode(pyramid) + 1) / 2, expected, rtol=1e-10, atol=1e-10)
    narrow = titok.from_official(tensors, HEADS)
    assert torch.equal(narrow.encode((2 * x - 1).float()).levels[0], ids)
    error = ((narrow.decode(pyramid) + 1) / 2 - expected).detach().abs().max()
    assert float(error / expected.abs().max()) < 1e-5


def test_the_continuous_model_computes_what_the_official_program_does() -> None:
    tensors, x = official("continuous"), images()
    w = {name: tensor.double() for name, tensor in tensors.items()}
    model = titok.from_official(tensors, HEADS).double()
    mean, log_variance = plain_encode(w, x, legacy=False).chunk(2, dim=1)
    posterior = model.posterior(2 * x - 1)
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(posterior.log_variance, log_variance, rtol=1e-10, atol=1e-10)
    # As the released program draws: on the CPU, in float32, channels first, with an axis of length one.
    noise = torch.randn(2, 3, 1, 5, generator=torch.Generator().manual_seed(3)).squeeze(2)
    sample = mean + (log_variance / 2).exp() * noise
    found = model.encode(2 * x - 1, rng=torch.Generator().manual_seed(3))
    torch.testing.assert_close(found.levels[0], sample.mT, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.encode(2 * x - 1).levels[0], mean.mT, rtol=1e-10, atol=1e-10)
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum((1, 2)).mean()
    torch.testing.assert_close(model.train()(2 * x - 1).losses["kl"], 1e-6 * divergence)


def test_maskgit_vqgan_computes_what_the_official_program_does() -> None:
    source = randomized(create("maskgit-vq", image_size=8, vocab_size=11, **CNN))
    tensors, x = maskgit_vq.to_official(source), images()
    w = {name: tensor.double() for name, tensor in tensors.items()}
    model = maskgit_vq.from_official(tensors, image_size=8).double()
    h = plain_proxy_encode(w, x).flatten(2).mT
    ids = nearest(h, w["quantize.embedding.weight"])
    pyramid = model.encode(2 * x - 1)
    assert torch.equal(pyramid.levels[0], ids)
    assert model.specs[0].grid == (4, 4)
    q = w["quantize.embedding.weight"][ids]
    expected = plain_pixels(w, "decoder", q.mT.reshape(2, 6, 4, 4))
    torch.testing.assert_close((model.decode(pyramid) + 1) / 2, expected, rtol=1e-10, atol=1e-10)
    # The two weights are the other way round than usual.
    latents = model.encode_latents(2 * x - 1)[0].detach().requires_grad_()
    loss = model.quantizer(latents).losses["quantizer"]
    torch.testing.assert_close(loss, 1.25 * (q - h).square().mean())
    (gradient,) = torch.autograd.grad(loss, latents)
    torch.testing.assert_close(gradient, 2 * (h - q) / q.numel())


@pytest.mark.parametrize("kind", KINDS)
def test_official_to_ours_and_back_is_the_identity(kind: str) -> None:
    tensors = official(kind)
    wrapped = {"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}
    back = titok.to_official(titok.from_official(wrapped, HEADS))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_the_first_stage_needs_the_tokenizer_of_its_proxy_codes() -> None:
    whole = official("two stages")
    tensors = {name: tensor for name, tensor in whole.items() if not name.startswith("pixel_")}
    with pytest.raises(ValueError, match=r"lacks tensor 'pixel_quantize.embedding.weight': it is of the first stage"):
        titok.from_official(tensors, HEADS)
    proxy = randomized(create("maskgit-vq", image_size=8, vocab_size=11, **CNN))
    model = titok.from_official(tensors, HEADS, proxy=proxy)
    pyramid = model.encode((2 * images() - 1).float())
    likeliest = model.proxy_logits(pyramid).argmax(-1)
    assert isinstance(proxy, MaskGITVQ)
    expected = proxy.decode(TokenPyramid((likeliest,), proxy.specs))
    torch.testing.assert_close(model.decode(pyramid), expected)
    assert titok.to_official(model).keys() == tensors.keys()


@pytest.mark.parametrize(
    ("change", "config", "error"),
    [
        ({"latent_tokens": None}, HEADS, "lacks tensor 'latent_tokens'"),
        ({"decoder.ffn.0.bias": None}, HEADS, r"lacks tensor 'decoder.ffn.0.bias' of shape \(48,\)"),
        ({"decoder.text_guidance_proj.weight": torch.zeros(1)}, HEADS, "1 tensors that TiTok has not: decoder.text_g"),
        (
            {"decoder.mask_token": torch.zeros(1, 24)},
            HEADS,
            r"'decoder.mask_token' has shape \(1, 24\), expected \(1, 1",
        ),
        ({}, {**HEADS, "is_legacy": False}, "is_legacy is False in the configuration, but the tensors of decoder.ffn"),
        ({}, None, r"heads of a encoder with 16 channels are not known: give config\['encoder_heads'\]"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Tensor | None], config: Any, error: str) -> None:
    tensors = {name: tensor for name, tensor in {**official("two stages"), **change}.items() if tensor is not None}
    with pytest.raises(ValueError, match=error):
        titok.from_official(tensors, config)


def test_official_names_of_the_published_sizes() -> None:
    """The number of tensors of the released files, and some of their names and shapes."""
    counts = {"titok-l-32": 692, "titok-b-64": 404, "titok-s-128": 308, "titok-bl-64": 459, "titok-sl-256": 411}
    counts |= {"titok-ll-32-vae": 602, "titok-bl-64-vae": 458}
    for preset, count in counts.items():
        with torch.device("meta"):
            found = titok.to_official(create(preset))
        assert len(found) == count, preset
        assert not [name for name in found if re.search(r"norm_in|blocks|fc1", name)]
    with torch.device("meta"):
        found = titok.to_official(create("titok-l-32"))
        proxy = maskgit_vq.to_official(create("maskgit-vq"))
    shapes = {name: tuple(tensor.shape) for name, tensor in {**found, **proxy}.items()}
    assert shapes["encoder.conv_out.weight"] == (256, 512, 1, 1)  # MaskGIT-VQGAN's
    assert tuple(found["encoder.conv_out.weight"].shape) == (12, 1024, 1, 1)
    assert shapes["encoder.transformer.23.attn.in_proj_weight"] == (3072, 1024)
    assert shapes["decoder.ffn.2.weight"] == (1024, 2048, 1, 1)
    assert shapes["pixel_decoder.up.3.block.0.nin_shortcut.weight"] == (256, 256, 1, 1)
    assert shapes["encoder.down.4.block.0.nin_shortcut.weight"] == (512, 512, 1, 1)
    assert shapes["decoder.up.4.upsample_conv.weight"] == (512, 512, 3, 3)
    assert len(proxy) == 168


def test_corrected_parts_have_no_official_form() -> None:
    with pytest.raises(ValueError, match="projection is 'per_token' with output 'proxy_decoded'; the official program"):
        titok.to_official(create("titok-l-32", **KINDS["two stages"][1], projection="per_token"))
    overrides = {**KINDS["two stages"][1], "cnn_shortcut": "input"}
    with pytest.raises(ValueError, match="cnn_shortcut is 'input'; the official program knows only 'branch'"):
        titok.to_official(create("titok-l-32", **overrides))
    with pytest.raises(ValueError, match="cnn_shortcut is 'input'; the official program knows only 'branch'"):
        maskgit_vq.to_official(create("maskgit-vq-tiny"))


def test_a_state_dict_without_an_encoder_is_no_maskgit_vqgan() -> None:
    tensors = maskgit_vq.to_official(create("maskgit-vq", image_size=8, vocab_size=11, **CNN))
    decoder = {name: tensor for name, tensor in tensors.items() if not name.startswith("encoder.")}
    with pytest.raises(ValueError, match=r"lacks tensors 'encoder\.\*'"):
        maskgit_vq.from_official(decoder)
