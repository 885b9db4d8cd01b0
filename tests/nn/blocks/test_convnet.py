from __future__ import annotations

import dataclasses
from typing import Any

import jaxtyping
import pytest
import torch
import torch.nn.functional as F

from hiergen.kernels.dispatch import plain_on_cpu
from hiergen.nn.blocks.convnet import ConvBlock, ConvDecoder, ConvEncoder, ConvNetConfig

SMALL = ConvNetConfig(channels=8, multipliers=(1, 2, 2), blocks=2, mid_blocks=1, z_channels=5, groups=4)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_sizes_have_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        assert count(ConvEncoder(ConvNetConfig())) == 23_775_104
        assert count(ConvDecoder(ConvNetConfig())) == 30_478_339
    assert ConvNetConfig().stride == 16


def test_shapes() -> None:
    image = torch.randn(2, 3, 16, 8)
    small = ConvEncoder(SMALL)(image)
    assert small.shape == (2, 5, 4, 2)
    assert ConvDecoder(SMALL)(small).shape == image.shape


def test_a_stem_makes_channels_of_squares_of_pixels() -> None:
    config = dataclasses.replace(SMALL, stem=4, multipliers=(1, 2))
    image = torch.randn(2, 3, 16, 8)
    encoder, decoder = ConvEncoder(config), ConvDecoder(config)
    assert (config.stride, encoder.conv_in.in_channels, decoder.conv_out.out_channels) == (8, 48, 48)
    small = encoder(image)
    assert small.shape == (2, 5, 2, 1)
    assert decoder(small).shape == image.shape
    with pytest.raises(ValueError, match="stem is 0, expected at least 1"):
        dataclasses.replace(SMALL, stem=0)


@pytest.mark.parametrize("shortcut", ["branch", "input"])
def test_block_where_channels_change(shortcut: Any) -> None:
    block = ConvBlock(4, 8, 2, shortcut)
    x = torch.randn(2, 4, 6, 6)
    branch = F.conv2d(F.silu(F.group_norm(x, 2, eps=1e-6)), block.conv1.weight, padding=1)
    branch = F.conv2d(F.silu(F.group_norm(branch, 2, eps=1e-6)), block.conv2.weight, padding=1)
    assert block.shortcut is not None
    read = x if shortcut == "input" else branch
    wanted = branch + torch.einsum("oi,bihw->bohw", block.shortcut.weight[:, :, 0, 0], read)
    torch.testing.assert_close(block(x), wanted)


def test_branch_shortcut_drops_the_input_and_the_other_keeps_it() -> None:
    x = torch.randn(1, 4, 4, 4)
    dead = {name: ConvBlock(4, 8, 2, name) for name in ("branch", "input")}  # type: ignore[arg-type]
    for block in dead.values():
        torch.nn.init.zeros_(block.conv2.weight)
    assert dead["branch"](x).count_nonzero() == 0
    assert dead["input"](x).count_nonzero() == 8 * 16


def test_block_without_change_of_channels_adds_its_input() -> None:
    block = ConvBlock(4, 4, 2, "branch")
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 4, 4, 4)
    assert block.shortcut is None
    assert torch.equal(block(x), x)


def test_results_do_not_depend_on_the_batch() -> None:
    network, images = ConvEncoder(SMALL), torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"groups": 3}, "groups is 3, expected a divisor of the 8 channels"),
        ({"channels": 0}, "channels is 0, expected at least 1"),
        ({"multipliers": ()}, r"multipliers is \(\), expected at least one"),
        ({"mid_blocks": -1}, "mid_blocks is -1, expected at least 0"),
        ({"shortcut": "none"}, "shortcut is 'none', expected 'branch' or 'input'"),
    ],
)
def test_impossible_sizes_are_refused(overrides: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where tests check annotations at run time, a wrong choice would be caught before our own message.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **overrides)


@pytest.mark.parametrize("stem", [1, 2])
def test_maps_lie_with_the_channels_last_on_a_cpu_and_give_the_same(stem) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, stem=stem)
    encoder, decoder, image = ConvEncoder(config), ConvDecoder(config), torch.randn(2, 3, 32, 16)
    seen: list[torch.Tensor] = []
    decoder.up[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    made = decoder(encoder(image))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    with plain_on_cpu():
        plain = decoder(encoder(image))
    assert seen[1].is_contiguous()
    torch.testing.assert_close(made, plain, rtol=1e-5, atol=1e-5)
