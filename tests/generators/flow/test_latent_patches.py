from __future__ import annotations

import pytest
import torch

from hiergen.generators.flow.latent_patches import LatentPatches
from hiergen.pyramid import LevelSpec


def test_patches_of_a_video_are_squares_of_single_frames() -> None:
    patches = LatentPatches((LevelSpec(48, (3, 4, 4), 5),), 2)
    assert patches.grids == [(3, 2, 2)]
    assert patches.dim == 20
    video = torch.randn(2, 3, 4, 4, 5)
    folded = patches.fold(video.flatten(1, 3))
    assert folded.shape == (2, 12, 20)
    # Token 7 is frame 1, second row, second column of squares.
    assert torch.equal(folded[:, 7], video[:, 1, 2:, 2:].permute(0, 3, 1, 2).flatten(1))
    out = torch.zeros(2, 12, 20)
    out[:, 7] = video[:, 1, 2:, 2:].flatten(1)
    back = patches.unfold(out).reshape(video.shape)
    assert torch.equal(back[:, 1, 2:, 2:], video[:, 1, 2:, 2:])
    assert back.count_nonzero() == back[:, 1, 2:, 2:].count_nonzero()


def test_levels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"level 0 has the grid \(2, 2\), the last one \(2, 2, 2\): expected equal axes"
    ):
        LatentPatches((LevelSpec(4, (2, 2), 3), LevelSpec(8, (2, 2, 2), 3)), 1)
    with pytest.raises(ValueError, match=r"patch_size is 3, expected a divisor of the grid \(3, 4, 4\)"):
        LatentPatches((LevelSpec(48, (3, 4, 4), 5),), 3)
    with pytest.raises(ValueError, match="expected continuous tokens on a 2-D or 3-D grid"):
        LatentPatches((LevelSpec(4, (4,), 5),), 1)
