"""Farthest-point sampling: the deterministic, evenly spread subset of a point cloud.

Letters: `b` batch, `p` points, `m` chosen points.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


@torch.no_grad()
def farthest_points(
    points: Float[Tensor, "b p 3"], count: int, *, rng: torch.Generator | None = None
) -> Int[Tensor, "b m"]:
    """Return the indices of `count` points of each cloud, each the one farthest from those chosen before it.

    Exact and greedy; the first point is index 0 and the lowest index wins a tie, so the result depends on the clouds alone.
    The first m indices are the answer for `count = m`: one call orders a cloud for every coarser resolution.

    Args:
        points: Coordinates. Distances are squared and Euclidean, in float32 (float64 for such points).
        count: Points to choose, 1 to p. The work is `count * p`: order large clouds once, when the data are prepared.
        rng: Where to draw a random first point for each cloud; None takes index 0.

    Raises:
        ValueError: If `count` is not in 1..p.

    Source:
        PointNet++, arXiv:1706.02413, section 3.2.
    """
    batch, num_points, _ = points.shape
    if not 1 <= count <= num_points:
        raise ValueError(f"count is {count}, expected 1 to {num_points}, the number of points")
    x, y, z = (points if points.dtype == torch.float64 else points.float()).unbind(-1)
    x, y, z = x.contiguous(), y.contiguous(), z.contiguous()
    chosen = torch.empty(batch, count, dtype=torch.int64, device=points.device)
    nearest = torch.full_like(x, torch.inf)
    if rng is None:
        latest = torch.zeros(batch, 1, dtype=torch.int64, device=points.device)
    else:
        latest = torch.randint(num_points, (batch, 1), generator=rng, device=rng.device).to(points.device)
    for step in range(count):
        chosen[:, step] = latest[:, 0]
        distance = (x - x.gather(1, latest)).square_()
        distance += (y - y.gather(1, latest)).square_()
        distance += (z - z.gather(1, latest)).square_()
        torch.minimum(nearest, distance, out=nearest)
        latest = nearest.argmax(dim=1, keepdim=True)
    return chosen
