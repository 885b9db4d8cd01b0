from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hiergen.losses.adversarial import Adversary, Augmentation, lecam_loss
from hiergen.losses.patch_gan import PatchDiscriminator


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_color_by_plain_loops() -> None:
    images = torch.rand(3, 3, 4, 4, dtype=torch.float64)
    draws = torch.rand(3, 3, 1, 1, 1, generator=rng(1), dtype=torch.float64)[..., 0, 0, 0]
    got = Augmentation()._color(images, rng(1))
    for k in range(3):
        x = images[k] + float(draws[0, k]) - 0.5
        for i in range(4):
            for j in range(4):
                gray = x[:, i, j].mean()
                x[:, i, j] = gray + (x[:, i, j] - gray) * 2 * draws[1, k]
        x = x.mean() + (x - x.mean()) * (0.5 + draws[2, k])
        torch.testing.assert_close(got[k], x)


def test_translation_moves_up_to_an_eighth_and_fills_with_black() -> None:
    images = torch.rand(64, 2, 16, 8) + 0.5
    moved = Augmentation()._translate(images, rng(0))
    padded = F.pad(images, (1, 1, 2, 2))
    shifts = [(down, right) for down in range(-2, 3) for right in range(-1, 2)]
    shifted = [padded[:, :, 2 + down : 18 + down, 1 + right : 9 + right] for down, right in shifts]
    matches = torch.stack([(moved == x).all(3).all(2).all(1) for x in shifted])
    assert torch.equal(matches.sum(0), torch.ones(64, dtype=torch.int64))
    seen = [shift for shift, found in zip(shifts, matches, strict=True) if bool(found.any())]
    assert {down for down, _ in seen} == {-2, -1, 0, 1, 2}
    assert {right for _, right in seen} == {-1, 0, 1}


def test_cutout_blackens_one_clipped_square() -> None:
    images = torch.ones(1500, 1, 15, 20)
    cut = Augmentation()._cut(images, rng(0)) == 0
    heights, widths = cut.any(3).sum((1, 2)), cut.any(2).sum((1, 2))
    assert torch.equal(cut.sum((1, 2, 3)), heights * widths)
    # A fifth of 15 is 3, of 20 is 4: centers lie inside, so at most half is clipped off.
    assert set(heights.tolist()) == {2, 3}
    assert set(widths.tolist()) == {2, 3, 4}
    assert bool(cut.any(0).all())


def test_policies_are_chosen_for_the_whole_batch() -> None:
    """A brightness policy alone: either all samples change or none, about every second time."""
    only = Augmentation(saturation=2.0, shift=0.0, cutout=0.0)
    images = torch.rand(4, 3, 6, 6) * 2 - 1
    changed = []
    for seed in range(40):
        result = only(images, rng=rng(seed))
        different = (result - images).abs().amax((1, 2, 3)) > 1e-5
        assert bool(different.all()) or not bool(different.any())
        changed.append(bool(different.all()))
    assert 10 < sum(changed) < 30
    assert torch.equal(only(images, rng=rng(3)), only(images, rng=rng(3)))
    # Black is -1 here and 0 inside.
    black = Augmentation(probability=1.0, brightness=0.0, saturation=2.0, cutout=1.0)(images, rng=rng(0))
    assert float(black.min()) >= -1.6
    assert bool((black == -1).any())


def test_gradients_pass_the_augmentation() -> None:
    images = torch.rand(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    every = Augmentation(probability=1.0)
    assert torch.autograd.gradcheck(lambda x: every(x, rng=rng(0)), images)


def test_losses_and_moving_averages_by_hand() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(3.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * x.mean((1, 2, 3))

    adversary = Adversary(Mean(), lecam_weight=0.5, lecam_decay=0.75)
    real, fake = torch.full((2, 1, 2, 2), 0.2), torch.full((2, 1, 2, 2), -0.1, requires_grad=True)
    # Logits 0.6 and -0.3: hinge (0.4 + 0.7) / 2; averages 0: relu(0.6)^2 + relu(0.3)^2.
    terms = adversary(real, fake)
    assert terms["loss"].item() == pytest.approx(0.55 + 0.5 * (0.36 + 0.09))
    (slope,) = torch.autograd.grad(terms["loss"], adversary.discriminator.scale)
    assert slope.item() == pytest.approx((-0.2 - 0.1) / 2 + 0.5 * (2 * 0.6 * 0.2 + 2 * 0.3 * 0.1), abs=1e-6)
    assert float(adversary.ema_real_logits_mean) == pytest.approx(0.15)
    assert float(adversary.ema_fake_logits_mean) == pytest.approx(-0.075)
    # Second pass: relu(0.6 + 0.075)^2 + relu(0.15 + 0.3)^2.
    assert adversary(real, fake)["lecam"].item() == pytest.approx(0.675**2 + 0.45**2)
    adversary.eval()(real, fake)
    assert float(adversary.ema_real_logits_mean) == pytest.approx(0.75 * 0.15 + 0.15)
    assert set(adversary.state_dict()) == {"discriminator.scale", "ema_real_logits_mean", "ema_fake_logits_mean"}
    adversary.generator_loss(fake).backward()
    torch.testing.assert_close(fake.grad, torch.full_like(fake, -3.0 / 8))
    assert float(lecam_loss(torch.tensor(-1.0), torch.tensor(1.0), torch.tensor(0.0), torch.tensor(0.0))) == 0


def test_real_and_fake_are_augmented_by_different_draws() -> None:
    adversary = Adversary(PatchDiscriminator(dim=4, num_layers=1).eval(), augmentation=Augmentation(probability=1.0))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    terms = adversary(images, images, rng=rng(0))
    assert float(terms["real_logits"]) != float(terms["fake_logits"])
    again = Adversary(adversary.discriminator, augmentation=Augmentation(probability=1.0))(images, images, rng=rng(0))
    assert torch.equal(terms["loss"], again["loss"])
