from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hiergen.bottlenecks.base import Bottleneck, BottleneckOutput


class Identity(Bottleneck):
    def forward(self, latents: Tensor, *, rng: torch.Generator | None = None) -> BottleneckOutput:
        return BottleneckOutput(latents, None, {})


def test_a_continuous_bottleneck_has_nothing_to_look_up() -> None:
    bottleneck = Identity()
    latents = torch.ones(1, 2, 3)
    assert bottleneck(latents).codes is latents
    with pytest.raises(TypeError, match="Identity is continuous: it has no ids to look up"):
        bottleneck.lookup(torch.zeros(1, 2, dtype=torch.int64))


def test_a_bottleneck_must_say_what_it_does() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Bottleneck()  # type: ignore[abstract]
