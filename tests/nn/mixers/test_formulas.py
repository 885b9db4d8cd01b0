"""Mixers against independent float64 transcriptions of their published formulas, with loops in place of tensors; see docs/precision.md."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.nn.mixers.base import TokenMixer
from hiergen.nn.mixers.create import create_mixer


def make(name: str, dim: int, heads: int = 1, **options: Any) -> TokenMixer:
    """Return a mixer in float64 whose biases, norms and tables are not zero."""
    torch.manual_seed(0)
    mixer = create_mixer(name, dim, num_heads=heads, **options).double().eval()
    for parameter in mixer.parameters():
        if parameter.requires_grad:
            parameter.requires_grad_(False).add_(0.3 * torch.randn_like(parameter))
    return mixer


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def close(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() < 1e-10 * theirs.abs().max()


def softmax_sum(scores: list[Tensor], values: list[Tensor]) -> Tensor:
    weights = torch.stack(scores).softmax(dim=0)
    return torch.stack([w * v for w, v in zip(weights, values, strict=True)]).sum(dim=0)


def window_start(place: int, residue: int, length: int, kernel: int, dilation: int) -> int:
    members = math.ceil((length - residue) / dilation)
    return min(max(place - kernel // 2, 0), members - kernel)


@pytest.mark.parametrize(
    ("shape", "kernel", "dilation", "small"),
    [((7, 9), 3, 2, "clamp"), ((8, 10), 3, 1, "clamp"), ((4, 10), 3, 2, "pad"), ((6, 6), 3, 2, "pad")],
)
def test_neighborhood_attention(shape: tuple[int, int], kernel: int, dilation: int, small: str) -> None:
    mixer: Any = make("neighborhood", 8, 2, kernel=kernel, dilation=dilation, small_maps=small)
    x, least = maps(2, *shape, 8), kernel * dilation
    padded = F.pad(x, (0, 0, 0, max(0, least - shape[1]), 0, max(0, least - shape[0])))
    height, width = padded.shape[1:3]
    q, k, v = F.linear(padded, mixer.qkv.weight, mixer.qkv.bias).unflatten(-1, (3, 2, 4)).unbind(3)
    out = torch.zeros_like(q)
    for i in range(height):
        for j in range(width):
            for head in range(2):
                scores, values = [], []
                top = window_start(i // dilation, i % dilation, height, kernel, dilation)
                left = window_start(j // dilation, j % dilation, width, kernel, dilation)
                for s in range(kernel):
                    for t in range(kernel):
                        y, u = i % dilation + dilation * (top + s), j % dilation + dilation * (left + t)
                        bias = mixer.rpb[head, (y - i) // dilation + kernel - 1, (u - j) // dilation + kernel - 1]
                        dot = (q[:, i, j, head] * 4**-0.5 * k[:, y, u, head]).sum(-1, keepdim=True)
                        scores.append(dot + bias)
                        values.append(v[:, y, u, head])
                out[:, i, j, head] = softmax_sum(scores, values)
    wanted = F.linear(out.flatten(3), mixer.proj.weight, mixer.proj.bias)[:, : shape[0], : shape[1]]
    close(mixer(x), wanted)


@pytest.mark.parametrize("small", ["clamp", "pad"])
@torch.no_grad()
def test_flex_attention_is_the_same_neighborhood(small: str) -> None:
    mixer: Any = make("neighborhood", 8, 2, kernel=3, dilation=2, small_maps=small).float()
    for shape in ((5, 9), (4, 7)):
        x = maps(2, *shape, 8).float()
        mixer.backend = "gather"
        plain = mixer(x)
        mixer.backend = "flex"
        torch.testing.assert_close(mixer(x), plain, rtol=1e-5, atol=1e-5)


def test_neighborhoods_as_long_as_the_map_are_attention() -> None:
    near: Any = make("neighborhood", 8, 2, kernel=5)
    full: Any = make("attention", 8, 2)
    near.rpb.zero_()
    for name, index in (("q", 0), ("k", 1), ("v", 2)):
        getattr(full, name).weight.copy_(near.qkv.weight.chunk(3)[index])
        getattr(full, name).bias.copy_(near.qkv.bias.chunk(3)[index])
    full.proj.load_state_dict(near.proj.state_dict())
    for shape in ((5, 5), (2, 4), (1, 1)):
        close(near(maps(2, *shape, 8)), full(maps(2, *shape, 8)))


@pytest.mark.parametrize("order", [2, 3, 5])
def test_recursive_gated_convolution(order: int) -> None:
    mixer: Any = make("gated_conv", 32, order=order)
    x = maps(2, 5, 6, 32)
    widths = [32 // 2 ** (order - 1 - i) for i in range(order)]
    pixels = F.linear(x, mixer.proj_in.weight[:, :, 0, 0], mixer.proj_in.bias)
    first, rest = pixels[..., : widths[0]], pixels[..., widths[0] :]
    padded = F.pad(rest, (0, 0, 3, 3, 3, 3))
    gates = torch.zeros_like(rest)
    for i in range(5):
        for j in range(6):
            square = padded[:, i : i + 7, j : j + 7]
            gates[:, i, j] = torch.einsum("bstc,cst->bc", square, mixer.dwconv.weight[:, 0]) + mixer.dwconv.bias
    gates = gates / 3
    z = first * gates[..., : widths[0]]
    start = widths[0]
    for i in range(order - 1):
        grown = F.linear(z, mixer.pws[i].weight[:, :, 0, 0], mixer.pws[i].bias)
        z = grown * gates[..., start : start + widths[i + 1]]
        start += widths[i + 1]
    close(mixer(x), F.linear(z, mixer.proj_out.weight[:, :, 0, 0], mixer.proj_out.bias))


@pytest.mark.parametrize(("order", "count"), [(3, 20_736), (5, 21_520)])
def test_parameters_of_gated_convolutions_are_the_published(order: int, count: int) -> None:
    assert sum(p.numel() for p in create_mixer("gated_conv", 64, order=order).parameters()) == count


@pytest.mark.parametrize("grid", [(6, 4), (4, 3)])
def test_global_filter(grid: tuple[int, int]) -> None:
    mixer: Any = make("gated_conv", 8, order=2, filter="global_local", frequency_grid=grid)
    part, x = mixer.dwconv, maps(2, 12, 6, 6)
    normed = F.layer_norm(x.permute(0, 2, 3, 1), (12,), part.pre_norm.weight, part.pre_norm.bias, 1e-6)
    near, far = normed.permute(0, 3, 1, 2).chunk(2, dim=1)
    near = F.conv2d(near, part.dw.weight, padding=1, groups=6)
    table = F.interpolate(part.complex_weight.permute(0, 3, 1, 2), (6, 4), mode="bilinear", align_corners=True)
    weight = torch.complex(table[:, 0], table[:, 1])
    # The discrete transform as a matrix.
    places = torch.arange(6, dtype=torch.float64)
    turn = torch.polar(torch.ones(6, 6, dtype=torch.float64), -2 * math.pi * torch.outer(places, places) / 6)
    spectrum = turn @ far.to(torch.complex128) @ turn / 6
    changed = torch.fft.irfft2(spectrum[..., :4] * weight, s=(6, 6), norm="ortho")
    joined = torch.stack((near, changed), dim=2).flatten(1, 2).permute(0, 2, 3, 1)
    wanted = F.layer_norm(joined, (12,), part.post_norm.weight, part.post_norm.bias, 1e-6).permute(0, 3, 1, 2)
    close(part(x), wanted)


def hyena_kernel(mixer: Any, sides: tuple[int, int], kind: str, window: str) -> Tensor:
    """Return the kernels `(c, *sides)` by position."""
    part = mixer.kernels

    def features(place: int, length: int) -> Tensor:
        t = place / (length - 1) if length > 1 else 0.0
        angle = 1e-4 * 2 * math.pi * place / length
        return torch.tensor([t, math.cos(-angle), math.sin(-angle)], dtype=torch.float64)

    def network(net: Any, z: Tensor) -> Tensor:
        for layer in net.layers:
            z = torch.sin(part.frequency * F.linear(z, layer.weight, layer.bias))
        return F.linear(z, net.last.weight)

    rows = []
    for i in range(sides[0]):
        for j in range(sides[1]):
            a, b = features(i, sides[0]), features(j, sides[1])
            if kind == "joint":
                value = network(part.networks[0], torch.cat((a, b)))
            else:
                value = network(part.networks[0], a) * network(part.networks[1], b)
            for axis, t in ((0, a[0]), (1, b[0])):
                if window != "none":
                    fall = torch.exp(-t * part.decay[axis].abs()) + part.shift[axis]
                    value = value * (fall.sqrt() if window == "root" else fall)
            rows.append(value)
    return torch.stack(rows, dim=1).unflatten(1, sides)


def causal(x: Tensor, kernel: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            for s in range(i + 1):
                for t in range(j + 1):
                    out[:, :, i, j] += kernel[:, i - s, j - t] * x[:, :, s, t]
    return out


@pytest.mark.parametrize(
    ("directions", "kind", "window", "order"),
    [
        ("standard", "joint", "fixed", 2),
        ("standard", "product", "learned", 3),
        ("sequential", "joint", "root", 3),
        ("four", "joint", "none", 2),
        ("four_projected", "joint", "fixed", 2),
    ],
)
def test_hyena(directions: str, kind: str, window: str, order: int) -> None:
    mixer: Any = make("hyena", 4, order=order, kernel=kind, directions=directions, window=window, filter_dim=5)
    x = maps(2, 4, 5, 4)
    kernels = hyena_kernel(mixer, (4, 5), kind, window).unflatten(0, (order - 1, 4))
    projected = F.linear(x, mixer.proj_in.weight, mixer.proj_in.bias).permute(0, 3, 1, 2)
    short = F.conv2d(projected, mixer.short.weight, mixer.short.bias, padding=1, groups=4 * (order + 1))
    *gates, v = short.split(4, dim=1)
    for t in range(order - 1):
        u = v * gates[order - 1 - t]
        flips: list[list[int]] = [[]]
        if directions == "sequential" and t == 0:
            flips = [[2, 3]]
        if directions.startswith("four"):
            flips = [[], [2], [3], [2, 3]]
        skip = mixer.skip[t][:, None, None]
        parts = [causal(u.flip(f), kernels[t]).flip(f) + skip * u for f in flips]
        if directions == "four":
            v = sum(p * w for p, w in zip(parts, mixer.mix.weight[0], strict=True)) + mixer.mix.bias
        elif directions == "four_projected":
            v = torch.einsum("bchw,dc->bdhw", torch.cat(parts, 1), mixer.mix.weight) + mixer.mix.bias[:, None, None]
        else:
            v = parts[0]
    wanted = F.linear((v * gates[0]).permute(0, 2, 3, 1), mixer.proj_out.weight, mixer.proj_out.bias)
    close(mixer(x), wanted)


def test_the_official_scale_of_hyena_is_a_sixteenth_at_eight() -> None:
    ours: Any = make("hyena", 4, directions="standard")
    official: Any = make("hyena", 4, directions="standard", official_scale=True)
    ours.skip.zero_()
    official.skip.zero_()
    for mixer in (ours, official):
        mixer.proj_out.bias.zero_()
    close(official(maps(1, 8, 8, 4)), ours(maps(1, 8, 8, 4)) / 16)


@pytest.mark.parametrize("axes", [1, 3])
def test_hyena_on_sequences_and_clips(axes: int) -> None:
    mixer: Any = make("hyena", 4, axes=axes, directions="standard")
    shape = (6, 5, 3)[:axes]
    x = maps(1, *shape, 4)
    changed = x.clone()
    place = (3, 2, 1)[:axes]
    changed[(0, *place)] += 1.0
    moved = (mixer(changed) - mixer(x)).abs().sum(-1)[0] > 1e-12
    seen = torch.ones(shape, dtype=torch.bool)
    for axis, (start, length) in enumerate(zip(place, shape, strict=True)):
        seen &= (torch.arange(length) >= start - 1).view([-1 if a == axis else 1 for a in range(axes)])
    assert torch.equal(moved, seen)


@pytest.mark.parametrize(("kernel", "count"), [("joint", 31_600), ("product", 44_080)])
def test_parameters_of_hyena_are_the_published(kernel: str, count: int) -> None:
    mixer: Any = create_mixer("hyena", 64, kernel=kernel, directions="standard", window="none")
    # The official program counts three features for each of sixteen positions.
    assert sum(p.numel() for p in mixer.parameters()) + 3 * 16 == count


@pytest.mark.parametrize(("reduction", "resize"), [(1, "grid"), (2, "grid"), (2, "sequence")])
def test_linear_attention(reduction: int, resize: str) -> None:
    mixer: Any = make("linear", 8, 2, reduction=reduction, resize=resize, grid=(4 // reduction, 6 // reduction))
    x = maps(2, 4, 6, 8)
    source = x
    if reduction > 1:
        source = F.conv2d(x.permute(0, 3, 1, 2), mixer.reduce.weight, mixer.reduce.bias, stride=2).permute(0, 2, 3, 1)
        source = F.layer_norm(source, (8,), mixer.norm.weight, mixer.norm.bias)
    q = F.linear(x, mixer.q.weight, mixer.q.bias).relu().flatten(1, 2)
    k = (F.linear(source, mixer.k.weight, mixer.k.bias) + mixer.positions.permute(1, 2, 0)).relu().flatten(1, 2)
    v = F.linear(source, mixer.v.weight, mixer.v.bias)
    flat, out = v.flatten(1, 2), torch.zeros_like(q)
    for i in range(24):
        for head in (slice(0, 4), slice(4, 8)):
            weights = torch.stack([(q[:, i, head] * k[:, j, head]).sum(-1) for j in range(k.shape[1])])
            total = sum(w[:, None] * flat[:, j, head] for j, w in enumerate(weights))
            out[:, i, head] = total / (weights.sum(0)[:, None] + 1e-6)
    image = v.permute(0, 3, 1, 2)
    if reduction > 1 and resize == "grid":
        image = F.interpolate(image, size=(4, 6), mode="bilinear", align_corners=False)
    elif reduction > 1:
        image = F.interpolate(image.flatten(2), size=24, mode="linear").unflatten(2, (4, 6))
    near = [F.conv2d(part, mixer.local.weight, mixer.local.bias, padding=2, groups=4) for part in image.chunk(2, 1)]
    out = out.unflatten(1, (4, 6)) + torch.cat(near, 1).permute(0, 2, 3, 1)
    close(mixer(x), F.linear(out, mixer.proj.weight, mixer.proj.bias))


@pytest.mark.parametrize(("scale", "norm"), [("head", "layer"), ("width", "batch")])
def test_convolutional_projection(scale: str, norm: str) -> None:
    mixer: Any = make("attention", 8, 2, projection="convolution", scale=scale, norm=norm)
    x = maps(2, 5, 6, 8)
    parts = []
    for index, layer in enumerate((mixer.q, mixer.k, mixer.v)):
        before = mixer.before[index]
        y = F.conv2d(x.permute(0, 3, 1, 2), before.conv.weight, stride=1 if index == 0 else 2, padding=1, groups=8)
        y = y.permute(0, 2, 3, 1)
        if norm == "batch":
            y = y / math.sqrt(1 + 1e-5) * before.norm.weight + before.norm.bias
        else:
            y = F.layer_norm(y, (8,), before.norm.weight, before.norm.bias)
        parts.append(F.linear(y, layer.weight, layer.bias).flatten(1, 2))
    q, k, v = parts
    factor = (8 if scale == "width" else 4) ** -0.5
    heads = [
        (q[..., h] @ k[..., h].transpose(1, 2) * factor).softmax(-1) @ v[..., h] for h in (slice(0, 4), slice(4, 8))
    ]
    close(mixer(x), F.linear(torch.cat(heads, -1), mixer.proj.weight, mixer.proj.bias).unflatten(1, (5, 6)))


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_windows_are_those_of_swin(shift: int) -> None:
    timm = pytest.importorskip("timm.models.swin_transformer")
    block = timm.SwinTransformerBlock(8, (8, 12), num_heads=2, window_size=4, shift_size=shift).double().eval()
    for parameter in block.parameters():
        parameter.requires_grad_(False).add_(0.3 * torch.randn_like(parameter))
    mixer: Any = make("window", 8, 2, window=4, shift=shift)
    mixer.qkv.load_state_dict(block.attn.qkv.state_dict())
    mixer.proj.load_state_dict(block.attn.proj.state_dict())
    mixer.bias.copy_(block.attn.relative_position_bias_table.T.unflatten(1, (7, 7)))
    x = maps(2, 8, 12, 8)
    # timm's mask is -100, not minus infinity.
    torch.testing.assert_close(mixer(x), block._attn(x), rtol=1e-9, atol=1e-9)
