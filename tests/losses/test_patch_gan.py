from __future__ import annotations

import pytest
import torch

from hiergen.losses.patch_gan import PatchDiscriminator, hinge_discriminator_loss, hinge_generator_loss


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
