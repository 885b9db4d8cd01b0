"""LlamaGen's tokenizer against the functional transcription of the latent-diffusion network, which reads tensors by other names."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.convert.llamagen import tokenizer_from_official
from hiergen.pyramid import LevelSpec, TokenPyramid

#: The transcription of the same network, for latent diffusion's names; it has these widths.
LDM = runpy.run_path(str(Path(__file__).parent / "test_ldm_vae.py"))
WIDTHS, LATENT, CODE, VOCAB = LDM["WIDTHS"], 6, 4, 37


def official_tokenizer(
    widths: tuple[int, ...] = WIDTHS, latent: int = LATENT, code: int = CODE, vocab: int = VOCAB, device: str = "cpu"
) -> dict[str, Tensor]:
    """Return random tensors by the names and shapes that the specification lists."""
    rng = torch.Generator().manual_seed(1)
    state: dict[str, Tensor] = {}

    def add(name: str, *shape: int) -> None:
        if device == "meta":
            state[f"{name}.weight"] = torch.empty(*shape, device="meta")
            state[f"{name}.bias"] = torch.empty(shape[0], device="meta")
            return
        offset = 1.0 if len(shape) == 1 else 0.0
        fan_in = max(1, torch.Size(shape[1:]).numel())
        state[f"{name}.weight"] = offset + torch.randn(*shape, generator=rng, dtype=torch.float64) / fan_in**0.5
        state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=rng, dtype=torch.float64)

    def residual(name: str, before: int, width: int) -> None:
        add(f"{name}.norm1", before)
        add(f"{name}.conv1", width, before, 3, 3)
        add(f"{name}.norm2", width)
        add(f"{name}.conv2", width, width, 3, 3)
        if before != width:
            add(f"{name}.nin_shortcut", width, before, 1, 1)

    def attention(name: str, width: int) -> None:
        add(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            add(f"{name}.{part}", width, width, 1, 1)

    last = len(widths) - 1
    for side, blocks, order in (("encoder", 2, widths), ("decoder", 3, widths[::-1])):
        add(f"{side}.conv_in", order[0], 3 if side == "encoder" else latent, 3, 3)
        before = order[0]
        for place, width in enumerate(order):
            for index in range(blocks):
                residual(f"{side}.conv_blocks.{place}.res.{index}", before, width)
                before = width
                if place == (last if side == "encoder" else 0):
                    attention(f"{side}.conv_blocks.{place}.attn.{index}", width)
            if place < last:
                name = "downsample" if side == "encoder" else "upsample"
                add(f"{side}.conv_blocks.{place}.{name}.conv", width, width, 3, 3)
        residual(f"{side}.mid.0", widths[-1], widths[-1])
        attention(f"{side}.mid.1", widths[-1])
        residual(f"{side}.mid.2", widths[-1], widths[-1])
        add(f"{side}.norm_out", order[-1])
        add(f"{side}.conv_out", latent if side == "encoder" else 3, order[-1], 3, 3)
    add("quant_conv", code, latent, 1, 1)
    add("post_quant_conv", latent, code, 1, 1)
    empty = torch.empty(vocab, code, device="meta")
    state["quantize.embedding.weight"] = (
        empty if device == "meta" else torch.randn(vocab, code, generator=rng, dtype=torch.float64)
    )
    state["quantize.codebook_used"] = torch.zeros(65536, device=device)
    return state


def witness(state: dict[str, Tensor]) -> object:
    """Return the transcription with these weights under the names that it reads."""
    names = {"mid.0.": "mid.block_1.", "mid.1.": "mid.attn_1.", "mid.2.": "mid.block_2.", ".res.": ".block."}
    named = {}
    for name, value in state.items():
        for theirs, ldm in names.items():
            name = name.replace(theirs, ldm)
        name = name.replace("encoder.conv_blocks.", "encoder.down.")
        # There the decoder's blocks are numbered by resolution, here in their order of use.
        name = re.sub(
            r"decoder\.conv_blocks\.(\d+)", lambda match: f"decoder.up.{len(WIDTHS) - 1 - int(match[1])}", name
        )
        named[name] = value
    return LDM["Transcription"](named)


@torch.no_grad()
def test_numbers_are_the_published_ones() -> None:
    state = official_tokenizer()
    model = tokenizer_from_official({"model": state}, {"image_size": 16})
    plain = witness(state)
    assert not model.training
    assert model.specs == (LevelSpec(16, (4, 4), CODE, VOCAB),)
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    latents = plain.moments(images)
    units = F.normalize(latents, dim=1)
    rows = F.normalize(state["quantize.embedding.weight"], dim=1)
    ids = torch.einsum("bkhw,vk->bhwv", units, rows).argmax(dim=-1)
    pyramid = model.encode(images)
    assert torch.equal(pyramid.levels[0], ids.flatten(1))
    expected = plain.decode(rows[ids].movedim(-1, 1))
    torch.testing.assert_close(model.decode(pyramid), expected, rtol=1e-10, atol=1e-10)
    output = model(images)
    torch.testing.assert_close(output.reconstruction, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(output.losses["quantizer"], 1.25 * (rows[ids].movedim(-1, 1) - units).square().mean())


@pytest.mark.parametrize(
    ("widths", "total", "encoder", "decoder", "count"),
    [
        ((128, 128, 256, 256, 512), 71_883_403, 29_298_176, 42_449_795, 344),
        ((128, 256, 256, 512), 70_109_835, 28_559_232, 41_415_171, 300),
    ],
    ids=["vq-16", "vq-8"],
)
def test_published_sizes(widths: tuple[int, ...], total: int, encoder: int, decoder: int, count: int) -> None:
    state = official_tokenizer(widths, 256, 8, 16384, device="meta")
    model = tokenizer_from_official(state)
    assert len(state) == count
    assert state["quantize.embedding.weight"].shape == model.quantizer.codebook.shape
    for part, expected in ((model, total), (model.encoder, encoder), (model.decoder, decoder)):
        assert sum(parameter.numel() for parameter in part.parameters()) == expected


def test_every_tensor_is_carried() -> None:
    state = official_tokenizer()
    model = tokenizer_from_official(state, {"image_size": 8})
    found = {value.sum().item() for value in model.state_dict().values()}
    assert found == {value.sum().item() for name, value in state.items() if name != "quantize.codebook_used"}
    # The converter copies: weights of a file that is mapped into memory may go.
    state["quantize.embedding.weight"].zero_()
    assert model.decode(TokenPyramid((torch.ones(1, 4, dtype=torch.int64),), model.specs)).abs().sum() > 0
    assert model.quantizer.codebook.abs().sum() > 0


def test_refusals() -> None:
    state = official_tokenizer()

    def without(name: str) -> dict[str, Tensor]:
        return {key: value for key, value in state.items() if key != name}

    for broken, message in (
        ({"decoder.conv_in.weight": torch.zeros(1)}, "lacks tensor 'quantize.embedding.weight'"),
        (without("decoder.conv_in.weight"), "lacks tensor 'decoder.conv_in.weight'"),
        (
            without("decoder.conv_blocks.1.upsample.conv.bias"),
            r"missing 'decoder\.conv_blocks\.1\.upsample\.conv\.bias'",
        ),
        (without("encoder.mid.1.proj_out.weight"), r"missing 'encoder\.mid\.1\.proj_out\.weight'"),
        ({**state, "decoder.extra": torch.zeros(1)}, r"unexpected 'decoder\.extra'"),
        ({**state, "quant_conv.bias": torch.zeros(3)}, r"'quant_conv\.bias' has shape \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer_from_official(broken)
    with pytest.raises(ValueError, match="config entry 'image_sise' is no setting of VQAutoencoder"):
        tokenizer_from_official(state, {"image_sise": 1})
