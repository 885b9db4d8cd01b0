"""The converter against a functional transcription of the latent-diffusion autoencoder that reads the official tensors only."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.convert.ldm_vae import from_official

WIDTHS, LATENT = (32, 64, 64), 4
LAST = len(WIDTHS) - 1


def official_state(
    *, has_decoder_attention: bool, widths: tuple[int, ...] = WIDTHS, latent: int = LATENT, device: str = "cpu"
) -> dict[str, Tensor]:
    """Return random tensors in the official layout: attention at the last encoder level, and there in the decoder if wanted."""
    rng = torch.Generator().manual_seed(1)
    state: dict[str, Tensor] = {}

    def add(name: str, *shape: int) -> None:
        if device == "meta":
            state[f"{name}.weight"] = torch.empty(*shape, device=device)
            state[f"{name}.bias"] = torch.empty(shape[0], device=device)
            return
        fan_in = max(1, torch.Size(shape[1:]).numel())
        offset = 1.0 if len(shape) == 1 else 0.0
        weight = offset + torch.randn(*shape, generator=rng, dtype=torch.float64) / fan_in**0.5
        state[f"{name}.weight"] = weight
        state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=rng, dtype=torch.float64)

    def block(name: str, width_in: int, width: int) -> None:
        add(f"{name}.norm1", width_in)
        add(f"{name}.conv1", width, width_in, 3, 3)
        add(f"{name}.norm2", width)
        add(f"{name}.conv2", width, width, 3, 3)
        if width_in != width:
            add(f"{name}.nin_shortcut", width, width_in, 1, 1)

    def attention(name: str, width: int) -> None:
        add(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            add(f"{name}.{part}", width, width, 1, 1)

    last = len(widths) - 1
    for side in ("encoder", "decoder"):
        block(f"{side}.mid.block_1", widths[-1], widths[-1])
        attention(f"{side}.mid.attn_1", widths[-1])
        block(f"{side}.mid.block_2", widths[-1], widths[-1])
    width = widths[0]
    add("encoder.conv_in", width, 3, 3, 3)
    for level, target in enumerate(widths):
        for index in range(2):
            block(f"encoder.down.{level}.block.{index}", width, target)
            width = target
            if level == last:
                attention(f"encoder.down.{level}.attn.{index}", width)
        if level < last:
            add(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    add("encoder.norm_out", width)
    add("encoder.conv_out", 2 * latent, width, 3, 3)
    add("quant_conv", 2 * latent, 2 * latent, 1, 1)
    add("post_quant_conv", latent, latent, 1, 1)
    add("decoder.conv_in", width, latent, 3, 3)
    for level in reversed(range(len(widths))):
        for index in range(3):
            block(f"decoder.up.{level}.block.{index}", width, widths[level])
            width = widths[level]
            if level == last and has_decoder_attention:
                attention(f"decoder.up.{level}.attn.{index}", width)
        if level > 0:
            add(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    add("decoder.norm_out", width)
    add("decoder.conv_out", 3, width, 3, 3)
    return state


class Transcription:
    """The autoencoder as functions of the official tensors."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def conv(self, x: Tensor, name: str, *, stride: int = 1, padding: int | None = None) -> Tensor:
        weight = self.state[f"{name}.weight"]
        padding = weight.shape[-1] // 2 if padding is None else padding
        return F.conv2d(x, weight, self.state[f"{name}.bias"], stride=stride, padding=padding)

    def norm(self, x: Tensor, name: str) -> Tensor:
        b, c, h, w = x.shape
        groups = x.reshape(b, 32, -1)
        mean, variance = groups.mean(-1, keepdim=True), groups.var(-1, unbiased=False, keepdim=True)
        normed = ((groups - mean) / (variance + 1e-6).sqrt()).reshape(b, c, h, w)
        return normed * self.state[f"{name}.weight"].view(-1, 1, 1) + self.state[f"{name}.bias"].view(-1, 1, 1)

    def swish_norm(self, x: Tensor, name: str) -> Tensor:
        y = self.norm(x, name)
        return y * torch.sigmoid(y)

    def block(self, x: Tensor, name: str) -> Tensor:
        h = self.conv(self.swish_norm(x, f"{name}.norm1"), f"{name}.conv1")
        h = self.conv(self.swish_norm(h, f"{name}.norm2"), f"{name}.conv2")
        if f"{name}.nin_shortcut.weight" in self.state:
            x = self.conv(x, f"{name}.nin_shortcut")
        return x + h

    def attention(self, x: Tensor, name: str) -> Tensor:
        if f"{name}.q.weight" not in self.state:
            return x
        normed = self.norm(x, f"{name}.norm")
        q, k, v = (self.conv(normed, f"{name}.{part}").flatten(2) for part in "qkv")
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) * x.shape[1] ** -0.5, dim=2)
        return x + self.conv(torch.einsum("bij,bcj->bci", weights, v).view(x.shape), f"{name}.proj_out")

    def middle(self, x: Tensor, side: str) -> Tensor:
        x = self.attention(self.block(x, f"{side}.mid.block_1"), f"{side}.mid.attn_1")
        return self.block(x, f"{side}.mid.block_2")

    def moments(self, x: Tensor) -> Tensor:
        x = self.conv(x, "encoder.conv_in")
        for level in range(len(WIDTHS)):
            for index in range(2):
                x = self.block(x, f"encoder.down.{level}.block.{index}")
                x = self.attention(x, f"encoder.down.{level}.attn.{index}")
            if level < LAST:
                padded = F.pad(x, (0, 1, 0, 1))
                x = self.conv(padded, f"encoder.down.{level}.downsample.conv", stride=2, padding=0)
        x = self.swish_norm(self.middle(x, "encoder"), "encoder.norm_out")
        return self.conv(self.conv(x, "encoder.conv_out"), "quant_conv")

    def decode(self, z: Tensor) -> Tensor:
        x = self.middle(self.conv(self.conv(z, "post_quant_conv"), "decoder.conv_in"), "decoder")
        for level in reversed(range(len(WIDTHS))):
            for index in range(3):
                x = self.block(x, f"decoder.up.{level}.block.{index}")
                x = self.attention(x, f"decoder.up.{level}.attn.{index}")
            if level > 0:
                x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                x = self.conv(x, f"decoder.up.{level}.upsample.conv")
        return self.conv(self.swish_norm(x, "decoder.norm_out"), "decoder.conv_out")


@pytest.mark.parametrize("has_decoder_attention", [True, False], ids=["va-vae", "kl-16"])
def test_numbers_are_the_published_ones(has_decoder_attention: bool) -> None:
    state = official_state(has_decoder_attention=has_decoder_attention)
    model = from_official(state)
    witness = Transcription(state)
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    posterior = model.encode(images).latent_dist
    mean, log_variance = witness.moments(images).chunk(2, dim=1)
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(posterior.logvar, log_variance.clamp(-30, 20), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.decode(mean).sample, witness.decode(mean), rtol=1e-10, atol=1e-10)
    single = from_official({name: value.float() for name, value in state.items()})
    error = (single.decode(mean.float()).sample - witness.decode(mean)).abs().max()
    assert error <= 1e-5 * witness.decode(mean).abs().max()


@pytest.mark.parametrize(("has_decoder_attention", "latent", "count"), [(True, 32, 342), (False, 16, 312)])
def test_published_sizes(has_decoder_attention: bool, latent: int, count: int) -> None:
    state = official_state(
        has_decoder_attention=has_decoder_attention, widths=(128, 128, 256, 256, 512), latent=latent, device="meta"
    )
    model = from_official(state)
    assert len(state) == len(model.state_dict()) == count
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == sum(value.numel() for value in state.values())
    if latent == 32:
        assert total / 1e6 == pytest.approx(69.84, abs=0.005)
    assert model.config.scaling_factor == 1.0


def test_training_checkpoint_and_config() -> None:
    state = official_state(has_decoder_attention=True)
    extra = {
        "linear_proj.weight": torch.zeros(8, LATENT, 1, 1),
        "loss.logvar": torch.zeros(()),
        "loss.discriminator.main.0.weight": torch.zeros(1),
        "foundation_model.model.cls_token": torch.zeros(1),
    }
    model = from_official({"state_dict": {**state, **extra}, "epoch": 3}, {"scaling_factor": 0.2325})
    assert model.config.scaling_factor == 0.2325
    assert torch.equal(model.quant_conv.weight, state["quant_conv.weight"])


def test_refusals() -> None:
    state = official_state(has_decoder_attention=True)

    def without(name: str) -> dict[str, Tensor]:
        return {key: value for key, value in state.items() if key != name}

    wide = {**state, "encoder.conv_out.weight": torch.zeros(10, 64, 3, 3)}
    for broken, message in (
        ({}, "lacks tensors 'encoder.down.0'"),
        (without("decoder.conv_in.weight"), "lacks tensor 'decoder.conv_in.weight'"),
        (without("decoder.up.1.upsample.conv.bias"), r"missing 'decoder\.up\.1\.upsample\.conv\.bias'"),
        (without("decoder.up.2.attn.1.proj_out.weight"), r"missing 'decoder\.up\.2\.attn\.1\.proj_out\.weight'"),
        ({**state, "decoder.extra": torch.zeros(1)}, r"unexpected 'decoder\.extra'"),
        ({**state, "encoder.norm_out.bias": torch.zeros(3)}, r"'encoder\.norm_out\.bias' has shape \(3,\)"),
        ({**state, "encoder.conv_in.weight": torch.zeros(3)}, r"'encoder\.conv_in\.weight' has shape \(3,\)"),
        (wide, "gives 10 moments, the decoder reads 4"),
        ({**state, "quant_conv.weight": torch.zeros(8, 6, 1, 1)}, "expected 8 channels in and out"),
    ):
        with pytest.raises(ValueError, match=message):
            from_official(broken)
    with pytest.raises(ValueError, match="config entry 'widht' is no setting of"):
        from_official(state, {"widht": 1})
