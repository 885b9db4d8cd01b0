from __future__ import annotations

import torch

from hiergen.tokenizers.flextok.guidance import ProjectedGuidance


def test_steps_are_those_of_plain_loops_for_every_sample() -> None:
    draws = torch.Generator().manual_seed(0)
    # One sample differs much, one little, so that only one is bounded.
    sizes = torch.tensor([4.0, 0.1], dtype=torch.float64)[:, None, None]
    guide, sums = ProjectedGuidance(), [torch.zeros(6, dtype=torch.float64) for _ in sizes]
    for _ in range(3):
        conditional, null = (sizes * torch.randn(2, 2, 3, generator=draws, dtype=torch.float64) for _ in range(2))
        found = guide(conditional, null, 7.5)
        for sample in range(2):
            c, n = conditional[sample].flatten(), null[sample].flatten()
            sums[sample] = (c - n) - 0.5 * sums[sample]
            bounded = sums[sample] * min(1.0, 2.5 / float(sums[sample].norm()))
            direction = c / c.norm()
            across = bounded - (bounded @ direction) * direction
            torch.testing.assert_close(found[sample].flatten(), c + 6.5 * across, rtol=1e-12, atol=1e-12)


def test_no_difference_is_no_guidance() -> None:
    same = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ProjectedGuidance()(same, same, 7.5), same)
