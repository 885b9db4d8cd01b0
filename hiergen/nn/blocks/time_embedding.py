"""The embedding of a diffusion or flow time.

Letters: `b` batch, `d` channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def time_features(time: Float[Tensor, " b"], dim: int = 256, *, period: float = 10000.0) -> Float[Tensor, "b d"]:
    """Return [cos(t f_k) | sin(t f_k)] with f_k = period ** (-k / (dim / 2)), in at least float32.

    Times are taken as they are: neither scaled nor rounded.
    """
    wide = time if time.dtype == torch.float64 else time.float()
    frequencies = period ** -(torch.arange(dim // 2, dtype=torch.float64, device=time.device) / (dim // 2))
    angles = wide[:, None] * frequencies.to(wide.dtype)
    return torch.cat((angles.cos(), angles.sin()), dim=1)


class TimeEmbedding(nn.Module):
    """Linear, SiLU, Linear on `time_features`.

    Args:
        dim: Channels of the embedding.
        num_features: Channels of the time features.
        period: Ratio of the highest frequency of the features to the lowest, about.
    """

    def __init__(self, dim: int, *, num_features: int = 256, period: float = 10000.0) -> None:
        super().__init__()
        self.num_features, self.period = num_features, period
        self.linear1 = nn.Linear(num_features, dim)
        self.linear2 = nn.Linear(dim, dim)

    def forward(self, time: Float[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Return one embedding per time."""
        features = time_features(time, self.num_features, period=self.period).to(self.linear1.weight.dtype)
        return self.linear2(F.silu(self.linear1(features)))
