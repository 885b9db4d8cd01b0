"""What every bottleneck is: latents -> codes, with ids where the codes are discrete.

Letters: `b` batch, `n` tokens, `d` channels of a token.
"""

from __future__ import annotations

import abc
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class BottleneckOutput(NamedTuple):
    """What a bottleneck makes of latents.

    Attributes:
        codes: `(b, n, d)`, what the decoder reads; carries the gradient to the latents.
        ids: `(b, n)` int64 where the codes are discrete, otherwise None.
        losses: Weighted scalars by name, to be added to the training loss.
    """

    codes: Tensor
    ids: Tensor | None
    losses: dict[str, Tensor]


class Bottleneck(nn.Module, abc.ABC):
    """Latents to codes. Discrete bottlenecks also implement `lookup`; `lookup(ids)` gives the codes that those ids stand for."""

    @abc.abstractmethod
    def forward(self, latents: Float[Tensor, "b n d"], *, rng: torch.Generator | None = None) -> BottleneckOutput:
        """Return codes, ids and losses. `rng` is read only by bottlenecks that sample."""

    def lookup(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """Return the codes of ids.

        Raises:
            TypeError: If the bottleneck is continuous.
        """
        raise TypeError(f"{type(self).__name__} is continuous: it has no ids to look up")
