"""The network against the published formulas, written down again with timm's Swin block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.tokenizers.super_resolution.network import DenseGroup, DenseResidualUpscaler

SIZES: dict[str, Any] = {"dim": 12, "growth": 3, "groups": 2, "num_heads": 4, "last_dim": 6, "window": 4}


def make(**options: Any) -> DenseResidualUpscaler:
    torch.manual_seed(0)
    network = DenseResidualUpscaler(**{**SIZES, **options}).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def images(height: int = 8, width: int = 12) -> Tensor:
    return torch.rand(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def swin(block: Any, x: Tensor, *, shift: int, heads: int, ratio: int) -> Tensor:
    """Return what timm's block with the weights of ours gives."""
    timm = pytest.importorskip("timm.models.swin_transformer")
    dim = x.shape[-1]
    theirs = timm.SwinTransformerBlock(
        dim, x.shape[1:3], num_heads=heads, window_size=4, shift_size=shift, mlp_ratio=ratio
    )
    theirs = theirs.double().eval()
    for name in ("norm1", "norm2"):
        getattr(theirs, name).load_state_dict(getattr(block, name).state_dict())
    theirs.attn.qkv.load_state_dict(block.attention.qkv.state_dict())
    theirs.attn.proj.load_state_dict(block.attention.proj.state_dict())
    theirs.mlp.load_state_dict(block.mlp.state_dict())
    with torch.no_grad():
        theirs.attn.relative_position_bias_table.copy_(block.attention.bias.flatten(1).T)
        return theirs(x)


@torch.no_grad()
def group_by_hand(group: Any, x: Tensor) -> Tensor:
    parts = [x]
    for index in range(5):
        width = 12 + 3 * index
        heads = 4 if index == 0 else 4 - width % 4
        found = swin(
            group.blocks[index],
            torch.cat(parts, dim=-1),
            shift=2 if index in (1, 3) else 0,
            heads=heads,
            ratio=2 if index < 3 else 1,
        )
        layer = group.narrow[index]
        found = found @ layer.weight.T + layer.bias
        if index == 4:
            return x + 0.2 * found
        parts.append(torch.where(found > 0, found, 0.2 * found))
    raise AssertionError


def convolve(layer: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=1)


@pytest.mark.parametrize("scale", [2, 4])
@torch.no_grad()
def test_the_network_is_the_published_one(scale: int) -> None:
    network, data = make(scale=scale, skip="none"), images()
    mean = torch.tensor((0.4488, 0.4371, 0.4040)).double().view(3, 1, 1)
    first = convolve(network.first, (data + 1) / 2 - mean)
    x = F.layer_norm(first.permute(0, 2, 3, 1), (12,), network.norm_in.weight, network.norm_in.bias)
    for group in network.groups:
        x = group_by_hand(group, x)
    x = F.layer_norm(x, (12,), network.norm_out.weight, network.norm_out.bias).permute(0, 3, 1, 2)
    x = convolve(network.before, convolve(network.body, x) + first)
    x = torch.where(x > 0, x, 0.01 * x)
    assert len(network.grow) == (1 if scale == 2 else 2)
    for layer in network.grow:
        x = F.pixel_shuffle(convolve(layer, x), 2)
    expected = 2 * (convolve(network.last, x) + mean) - 1
    made = network(data)
    assert made.shape == (2, 3, 8 * scale, 12 * scale)
    assert (made - expected).abs().max() < 1e-9 * expected.abs().max()
    other = make(scale=scale)
    other.load_state_dict(network.state_dict())
    added = other(data) - F.interpolate(data, scale_factor=scale, mode="bicubic")
    torch.testing.assert_close(added, expected - 2 * mean + 1, rtol=1e-6, atol=1e-6)


def test_published_heads_and_parameters() -> None:
    group = DenseGroup(180, 32, num_heads=6, window=16)
    assert [block.attention.num_heads for block in group.blocks] == [6, 4, 2, 6, 4]
    assert [layer.out_features for layer in group.narrow] == [32, 32, 32, 32, 180]
    assert [block.mlp.fc1.out_features for block in group.blocks] == [360, 424, 488, 276, 308]
    with pytest.raises(
        ValueError,
        match="num_heads is 5 with dim 20 and growth 8, which gives 3 heads to block 5 of 52 channels, expected a divisor",
    ):
        DenseGroup(20, 8, num_heads=5, window=4)


def test_it_starts_as_bicubic_interpolation_and_takes_any_size() -> None:
    network, data = DenseResidualUpscaler(**SIZES), images(5, 7).float()
    assert torch.equal(network(data), F.interpolate(data, scale_factor=2, mode="bicubic"))
    assert not torch.allclose(
        DenseResidualUpscaler(**SIZES, skip="none")(data), F.interpolate(data, scale_factor=2, mode="bicubic"), atol=0.1
    )


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="scale is 3, expected a power of two of at least 2"):
        DenseResidualUpscaler(scale=3)
