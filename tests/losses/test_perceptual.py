from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hiergen.losses.perceptual import WeightedMix, jittered
from hiergen.pretrained.perceptual import LPIPS


def test_jitter_is_pad_crop_and_bicubic_resize_of_both() -> None:
    first = torch.randn(2, 3, 20, 24, dtype=torch.float64, requires_grad=True)
    second = torch.randn(2, 3, 20, 24, dtype=torch.float64)
    for seed in range(3):
        kept: list[torch.Tensor] = []
        jittered(
            lambda x, y, kept=kept: kept.extend((x, y)) or x.sum(),
            first,
            second,
            margin=5,
            rng=torch.Generator().manual_seed(seed),
        )
        top, bottom, left, right = torch.randint(0, 6, (4,), generator=torch.Generator().manual_seed(seed)).tolist()
        for ours, image in zip(kept, (first, second), strict=True):
            padded = F.pad(image, (5, 5, 5, 5), mode="replicate")
            cut = padded[:, :, top : padded.shape[2] - bottom, left : padded.shape[3] - right]
            expected = F.interpolate(cut, size=(20, 24), mode="bicubic", align_corners=False)
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(second)
    (ours,) = torch.autograd.grad((kept[0] * weight).sum(), first)
    (plain,) = torch.autograd.grad(
        (
            F.interpolate(
                F.pad(first, (5,) * 4, mode="replicate")[:, :, top : 30 - bottom, left : 34 - right],
                size=(20, 24),
                mode="bicubic",
            )
            * weight
        ).sum(),
        first,
    )
    torch.testing.assert_close(ours, plain)


def test_a_mixture_is_the_weighted_mean_of_distances() -> None:
    class Gap(nn.Module):
        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            return (first - second).square().mean((1, 2, 3))

    first, second = torch.rand(2, 1, 3, 32, 32)
    first.requires_grad_()
    mix = WeightedMix([Gap(), LPIPS("alex")], [1.0, 3.0])
    value = mix(first, second)
    torch.testing.assert_close(value, 0.25 * Gap()(first, second) + 0.75 * mix.distances[1](first, second))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mix(first, second), value)
    (gradient,) = torch.autograd.grad(value.sum(), first)
    assert float(gradient.abs().sum()) > 0
    for weights in ([1.0], [0.0, 0.0], [2.0, -1.0]):
        with pytest.raises(ValueError, match="for 2 distances, expected one each"):
            WeightedMix([Gap(), Gap()], weights)
