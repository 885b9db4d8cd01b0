from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hiergen.losses.patch_gan import (
    BlurPoolDiscriminator,
    PatchDiscriminator,
    hinge_discriminator_loss,
    hinge_generator_loss,
)


def test_layout_and_size_are_tamings() -> None:
    with torch.device("meta"):
        model = PatchDiscriminator()
        logits = model(torch.empty(1, 3, 256, 256))
    assert logits.shape == (1, 1, 30, 30)
    convolutions = {
        name: tuple(value.shape)
        for name, value in model.state_dict().items()
        if name.endswith("weight") and value.ndim > 1
    }
    assert convolutions == {
        "main.0.weight": (64, 3, 4, 4),
        "main.2.weight": (128, 64, 4, 4),
        "main.5.weight": (256, 128, 4, 4),
        "main.8.weight": (512, 256, 4, 4),
        "main.11.weight": (1, 512, 4, 4),
    }
    # By hand: four 4 x 4 convolutions and the last, biases on the first and the last, two vectors a batch norm.
    weights = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    assert sum(parameter.numel() for parameter in model.parameters()) == weights + 64 + 1 + 2 * (128 + 256 + 512)


def test_one_logit_sees_seventy_pixels() -> None:
    model = PatchDiscriminator(dim=4).eval()
    images = torch.rand(1, 3, 128, 128, requires_grad=True)
    model(images)[0, 0, 7, 7].backward()
    rows = images.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == 70


def test_hinge_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert float(hinge_discriminator_loss(real, fake)) == pytest.approx(((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3) / 2)
    assert float(hinge_generator_loss(fake)) == pytest.approx(2 / 3)
    assert hinge_generator_loss(fake.bfloat16()).dtype == torch.float32


def test_discriminator_learns_to_tell_two_kinds_of_images() -> None:
    model = PatchDiscriminator(dim=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.5, 0.9))
    for _ in range(20):
        real, fake = torch.rand(4, 3, 32, 32) * 0.1, torch.rand(4, 3, 32, 32) * 0.1 - 0.5
        loss = hinge_discriminator_loss(model(real), model(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5


def test_blur_pool_by_plain_steps_with_gradients() -> None:
    model = BlurPoolDiscriminator(dim=4, num_stages=2, map_size=3, groups=2).double()
    images = (torch.rand(2, 3, 16, 12, dtype=torch.float64) * 2 - 1).requires_grad_()
    got = model(images)
    x = leaky(F.conv2d(F.pad(images, (2,) * 4), model.stem.weight, model.stem.bias))
    for convolution, norm in zip(model.convolutions, model.norms, strict=True):
        x = F.conv2d(F.pad(x, (1,) * 4), convolution.weight, convolution.bias)
        mirrored = torch.cat([x[:, :, 1:2], x, x[:, :, -2:-1]], dim=2)
        x = sum(tap * mirrored[:, :, k : k + x.shape[2] - 1 : 2] for k, tap in enumerate((0.125, 0.375, 0.375, 0.125)))
        mirrored = torch.cat([x[..., 1:2], x, x[..., -2:-1]], dim=3)
        x = sum(tap * mirrored[..., k : k + x.shape[3] - 1 : 2] for k, tap in enumerate((0.125, 0.375, 0.375, 0.125)))
        parts = x.reshape(2, 2, -1)
        parts = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, keepdim=True, unbiased=False) + 1e-5).sqrt()
        x = leaky(parts.reshape(x.shape) * norm.weight[:, None, None] + norm.bias[:, None, None])
    # 4 x 3 cells to 3 x 3: rows 0-1, 1-2, 2-3.
    assert x.shape == (2, 8, 4, 3)
    x = torch.stack([x[:, :, k : k + 2].amax(2) for k in range(3)], dim=2)
    x = leaky(F.conv2d(x, model.head.weight, model.head.bias))
    expected = F.conv2d(F.pad(x, (2,) * 4), model.to_logits.weight, model.to_logits.bias)
    torch.testing.assert_close(got, expected)
    for parameter in (images, model.convolutions[0].weight, model.norms[1].bias):
        (ours,) = torch.autograd.grad(got.square().sum(), parameter, retain_graph=True)
        (plain,) = torch.autograd.grad(expected.square().sum(), parameter, retain_graph=True)
        torch.testing.assert_close(ours, plain)


def test_blur_pool_at_its_published_size() -> None:
    with torch.device("meta"):
        model = BlurPoolDiscriminator()
        assert model(torch.empty(1, 3, 256, 256)).shape == (1, 1, 16, 16)
    assert [tuple(layer.weight.shape[:2]) for layer in model.convolutions] == [(128, 128), (256, 128), (512, 256)]
    assert "blur" not in model.state_dict()
    with pytest.raises(ValueError, match="dim is 20, expected a multiple of groups, 32"):
        BlurPoolDiscriminator(dim=20)


def leaky(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0, x, 0.1 * x)
