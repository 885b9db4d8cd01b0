"""Mixtures of distances between images in [-1, 1], and a random jitter in front. The networks are in `hiergen.pretrained.perceptual`.

Letters: `b` batch, `c h w` image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class WeightedMix(nn.Module):
    """The weighted mean of several distances.

    Raises:
        ValueError: If there are no distances, or not one weight for each, or a weight is negative, or all are 0.
    """

    def __init__(self, distances: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        if not distances or len(distances) != len(weights) or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(
                f"weights are {tuple(weights)} for {len(distances)} distances, expected one each, none negative, not all 0"
            )
        self.distances = nn.ModuleList(distances)
        self.weights = [weight / sum(weights) for weight in weights]

    def forward(self, first: Float[Tensor, "b c h w"], second: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """Return the mixed distance of each pair."""
        parts = [
            weight * distance(first, second) for weight, distance in zip(self.weights, self.distances, strict=True)
        ]
        return torch.stack(parts).sum(dim=0)


def jittered(
    distance: Callable[[Tensor, Tensor], Tensor],
    first: Float[Tensor, "b c h w"],
    second: Float[Tensor, "b c h w"],
    *,
    margin: int = 15,
    rng: torch.Generator | None = None,
) -> Tensor:
    """Return the distance of both images under the same random shift and stretch, one draw for the whole batch.

    Replicate `margin` pixels on all sides, cut 0 to `margin` off each side, resize bicubically to the old size.

    Source:
        ResTok, arXiv:2601.03955: in front of LPIPS, with 15 pixels at 256 x 256.
    """
    device = first.device if rng is None else rng.device
    cuts = torch.randint(0, margin + 1, (4,), generator=rng, device=device).to(first.device)
    both = torch.cat([first, second])
    for dim, (low, high) in ((2, (cuts[0], cuts[1])), (3, (cuts[2], cuts[3]))):
        both = _stretch(both, dim, low, high, margin)
    stretched_first, stretched_second = both.chunk(2)
    return distance(stretched_first, stretched_second)


def _stretch(x: Tensor, dim: int, low: Tensor, high: Tensor, margin: int) -> Tensor:
    """Pad, cut and resize along one side without asking the host for the size of the cut."""
    size = x.shape[dim]
    kept = size + 2 * margin - low - high
    # The centers of the output pixels in pixels of the cut, with corners not aligned.
    place = (
        torch.arange(size, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32)) + 0.5
    ) * kept / size - 0.5
    whole = place.floor()
    result = torch.zeros_like(x)
    for tap in (-1, 0, 1, 2):
        weight = _cubic(place - whole - tap)
        inside = torch.minimum((whole.long() + tap).clamp(min=0), kept - 1)
        # Replicated pixels are the border's own.
        source = (inside + low - margin).clamp(0, size - 1)
        shape = [1] * x.ndim
        shape[dim] = size
        result = result + x.index_select(dim, source) * weight.to(x.dtype).reshape(shape)
    return result


def _cubic(distance: Tensor, a: float = -0.75) -> Tensor:
    """Return Keys' cubic convolution kernel, with the constant of PyTorch's bicubic resize."""
    d = distance.abs()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))
