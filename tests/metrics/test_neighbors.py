"""Nearest images by pixels and by LPIPS against loops, and what is said of their distances."""

from __future__ import annotations

import math

import pytest
import torch

from hiergen.metrics.neighbors import nearest_by_lpips, nearest_by_pixels, nearness
from hiergen.pretrained.perceptual import LPIPS


def test_nearest_by_pixels_against_a_loop() -> None:
    a = torch.randint(0, 256, (5, 1, 3, 3), dtype=torch.uint8)
    b = torch.randint(0, 256, (7, 1, 3, 3), dtype=torch.uint8)
    loop = [[float(((x.double() - y.double()) / 255).square().mean().sqrt()) for y in b] for x in a]
    found = nearest_by_pixels(a, b)
    assert found.distances.tolist() == pytest.approx([min(row) for row in loop], rel=1e-5)
    assert found.indices.tolist() == [row.index(min(row)) for row in loop]
    assert nearest_by_pixels(a, a).distances.tolist() == [0] * 5
    alone = nearest_by_pixels(a, a, leave_one_out=True)
    assert float(alone.distances.min()) > 0.01
    assert all(k != index for k, index in enumerate(alone.indices.tolist()))


def test_a_small_distance_keeps_its_digits() -> None:
    image = torch.full((1, 3, 64, 64), 200, dtype=torch.uint8)
    other = image.clone()
    other[0, 0, 0, 0] = 201
    expected = math.sqrt((1 / 255) ** 2 / (3 * 64 * 64))
    assert float(nearest_by_pixels(image, other).distances) == pytest.approx(expected, rel=1e-5)


def test_nearest_by_lpips_is_that_of_all_pairs() -> None:
    torch.manual_seed(0)
    network = LPIPS("alex")
    for head in network.heads:
        head.copy_(torch.rand(len(head)))
    a, b = torch.rand(3, 3, 64, 64) * 2 - 1, torch.rand(5, 3, 64, 64) * 2 - 1
    b[4] = 0.9 * a[1]
    pairs = torch.stack([network(a, y.expand_as(a)) for y in b], dim=1)
    found = nearest_by_lpips(a, b, network, batch_size=2)
    assert found.distances.tolist() == pytest.approx(pairs.min(dim=1).values.tolist(), abs=1e-5)
    assert found.indices.tolist() == pairs.argmin(dim=1).tolist()
    assert found.indices[1] == 4
    network.heads[1][0] = -0.5
    with pytest.raises(ValueError, match=r"head 1 has a negative weight, -0\.5; expected none below zero"):
        nearest_by_lpips(a, b, network)


def test_nearness_with_and_without_copies_in_the_data() -> None:
    held_out = torch.tensor([0.0, 0.0, *(0.2 + 0.01 * k for k in range(101))])
    made = torch.tensor([0.1, 0.205, 0.3, 0.4])
    found = nearness(made, held_out, held_out < 0.05)
    assert found["copies among held out"] == 2
    assert found["held out, 1 %"] == pytest.approx(0.004)
    assert found["held out, copies left out, 1 %"] == pytest.approx(0.21)
    assert found["held out, copies left out, 50 %"] == pytest.approx(0.7)
    assert found["share below 1 % of held out"] == 0
    assert found["share below 1 % of held out, copies left out"] == 0.5
    assert found["nearest made"] == pytest.approx(0.1)
    with pytest.raises(
        ValueError, match="is_copy marks all 103 held-out images, expected one that is no training image"
    ):
        nearness(made, held_out, held_out < 2)
