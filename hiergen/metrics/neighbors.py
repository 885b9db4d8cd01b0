"""How near images are to those of another set, by pixels and by LPIPS: a model that repeats its training pictures shows it here.

Letters: `n m` images of two sets, `d` numbers of an embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from hiergen.pretrained.perceptual import LPIPS


@dataclasses.dataclass(frozen=True)
class Nearest:
    """The nearest image of another set, for each image of a set.

    Attributes:
        distances: How far it is.
        indices: Index of that image in the other set.
    """

    distances: Float[Tensor, " n"]
    indices: Int64[Tensor, " n"]


def nearest_by_pixels(
    images: UInt8[Tensor, "n c h w"], reference: UInt8[Tensor, "m c h w"], *, leave_one_out: bool = False
) -> Nearest:
    """Return the nearest reference image of each image by the root mean square difference of pixels in [0, 1].

    Args:
        images: Images whose neighbors are looked for.
        reference: Images among which they are looked for.
        leave_one_out: Whether the sets are the same one, so that an image is not its own neighbor.
    """
    a, b = (x.float().flatten(1) / 255 for x in (images, reference))
    squares = _squares(a, b)
    if leave_one_out:
        squares.fill_diagonal_(torch.inf)
    indices = squares.argmin(dim=1)
    # Once more from the pair itself: products of matrices lose the digits of small distances.
    return Nearest((a - b[indices]).square().mean(dim=1).sqrt(), indices)


@torch.no_grad()
def nearest_by_lpips(
    images: Float[Tensor, "n 3 h w"], reference: Float[Tensor, "m 3 h w"], network: LPIPS, *, batch_size: int = 64
) -> Nearest:
    """Return the nearest reference image of each image by LPIPS, among all of them: LPIPS is a squared distance of `LPIPS.embed`.

    Args:
        images: Images in [-1, 1] whose neighbors are looked for; their embeddings are in memory together.
        reference: Images in [-1, 1] among which they are looked for, of the same size; their embeddings are not.
        network: LPIPS with its weights.
        batch_size: Number of images that the network takes at once.
    """
    own = torch.cat([network.embed(part) for part in images.split(batch_size)])
    best = Nearest(own.new_full((len(own),), torch.inf), torch.zeros(len(own), dtype=torch.int64))
    for start in range(0, len(reference), batch_size):
        found = _squares(own, network.embed(reference[start : start + batch_size])).min(dim=1)
        is_nearer = found.values < best.distances
        best = Nearest(
            found.values.where(is_nearer, best.distances), (found.indices + start).where(is_nearer, best.indices)
        )
    return best


def nearness(made: Float[Tensor, " n"], held_out: Float[Tensor, " m"], is_copy: Bool[Tensor, " m"]) -> dict[str, float]:
    """Return percentiles of distances to the nearest training image, and the share of images that are nearer than held-out ones are.

    Args:
        made: Distances of generated images.
        held_out: Distances of held-out images.
        is_copy: Whether a held-out image is also a training image: data may hold a picture twice. "copies left out" measures without those.

    Raises:
        ValueError: If all held-out images are copies.
    """
    different = held_out[~is_copy]
    if not len(different):
        raise ValueError(f"is_copy marks all {len(held_out)} held-out images, expected one that is no training image")
    found: dict[str, float] = {}
    for name, values in (("made", made), ("held out", held_out), ("held out, copies left out", different)):
        found |= {
            f"{name}, {k} %": value for k, value in zip((1, 5, 50), _percentiles(values, (1, 5, 50)), strict=True)
        }
    for name, values in (("held out", held_out), ("held out, copies left out", different)):
        limit = _percentiles(values, (1,))[0]
        found[f"share below 1 % of {name}"] = float((made < limit).float().mean())
    return {**found, "copies among held out": len(held_out) - len(different), "nearest made": float(made.min())}


def _percentiles(values: Tensor, percents: Sequence[int]) -> list[float]:
    return [float(values.double().quantile(percent / 100)) for percent in percents]


def _squares(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Return squared distances by a product of matrices, never negative."""
    return (a.square().sum(dim=1)[:, None] + b.square().sum(dim=1) - 2 * a @ b.T).clamp_min(0)
