from __future__ import annotations

import pytest
import torch

from hiergen.losses.alignment import cosine_hinge_loss, distance_matrix_loss


def cosine(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (u * v).sum() / (u.norm() * v.norm())


def test_both_losses_by_plain_loops_with_gradients() -> None:
    features = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    # Close to the features, so that some positions and pairs are inside the margins and some outside.
    teacher = features.detach() + 0.8 * torch.randn(2, 5, 3, dtype=torch.float64)
    hinge = cosine_hinge_loss(features, teacher, margin=0.25)
    matrix = distance_matrix_loss(features, teacher, margin=0.2)
    (hinge + matrix).backward()

    witness = features.detach().clone().requires_grad_()
    hinges, gaps = [], []
    for b in range(2):
        for i in range(5):
            hinges.append((0.75 - cosine(witness[b, i], teacher[b, i])).clamp(min=0))
            for j in range(5):
                gap = cosine(witness[b, i], witness[b, j]) - cosine(teacher[b, i], teacher[b, j])
                gaps.append((gap.abs() - 0.2).clamp(min=0))
    for values in (hinges, gaps):
        assert 0 < sum(float(value.detach()) == 0 for value in values) < len(values)
    (torch.stack(hinges).mean() + torch.stack(gaps).mean()).backward()
    torch.testing.assert_close(hinge, torch.stack(hinges).mean())
    torch.testing.assert_close(matrix, torch.stack(gaps).mean())
    torch.testing.assert_close(features.grad, witness.grad)


def test_aligned_features_cost_nothing() -> None:
    teacher = torch.randn(2, 4, 3)
    assert float(cosine_hinge_loss(3 * teacher, teacher, margin=0.1)) == 0
    assert float(distance_matrix_loss(3 * teacher, teacher, margin=0.1)) == 0
    # One value per image, as for class tokens.
    assert float(cosine_hinge_loss(-teacher[:, 0], teacher[:, 0], margin=0.25)) == pytest.approx(1.75)


def test_half_precision_is_widened() -> None:
    teacher = torch.randn(2, 4, 3)
    assert cosine_hinge_loss(teacher.bfloat16(), teacher, margin=0.0).dtype == torch.float32
    assert distance_matrix_loss(teacher.bfloat16(), teacher, margin=0.0).dtype == torch.float32
    features = torch.randn(2, 4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for loss in (cosine_hinge_loss, distance_matrix_loss):
            inside = loss(features, teacher, margin=0.1)
            with torch.autocast("cpu", enabled=False):
                assert torch.equal(inside, loss(features, teacher, margin=0.1))
