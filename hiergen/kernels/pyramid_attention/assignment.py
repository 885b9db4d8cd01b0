"""From the scores of key blocks to pools: the most important blocks are read in full, the next at pool 2, and so on.

Scores of a row are sorted in descending order, equal ones by lower id; pools are runs of that order.
Letters: `b` batch, `h` query heads, `i` query blocks, `j` key blocks.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from hiergen.kernels.pyramid_attention.config import PSAConfig


def assign_pools(
    scores: Float[Tensor, "b h i j"], config: PSAConfig, *, visible: Int[Tensor, " i"] | None = None
) -> UInt8[Tensor, "b h i j"]:
    """Return the pool of every block.

    Args:
        scores: Nonnegative, of any scale; float32.
        visible: How many leading key blocks each row may see; shares are of these. All by default.

    Source:
        Pyramid Sparse Attention, arXiv:2512.04025, section 3, and the rules of its code that the paper does not state: the
        crossing block, the floor under pool 1, rounding to whole tiles (fields of `PSAConfig`). Scores are summed in float32,
        there in the model's dtype.
    """
    num_columns = scores.shape[-1]
    columns = torch.arange(num_columns, device=scores.device)
    if visible is None:
        visible = torch.full((scores.shape[2],), num_columns, device=scores.device)
    hidden = columns >= visible[:, None]
    order = scores.float().masked_fill(hidden, -torch.inf).sort(dim=-1, descending=True, stable=True)
    mass = order.values.clamp(min=0.0)
    if config.mode == "energy":
        pools = _by_interval(mass, config)
    else:
        pools = _by_runs(mass, config, visible)
    return torch.zeros_like(pools).scatter_(-1, order.indices, pools).masked_fill_(hidden, 0)


def _by_runs(mass: Tensor, config: PSAConfig, visible: Tensor) -> Tensor:
    """Return pools by sorted position, for modes "threshold" and "quota"."""
    position = torch.arange(mass.shape[-1], device=mass.device)
    share = mass.cumsum(dim=-1)
    share = share / share[..., -1:]
    limit = visible.expand(mass.shape[:-1])
    previous = torch.zeros_like(limit)
    pools = torch.zeros(mass.shape, dtype=torch.uint8, device=mass.device)
    by_threshold = config.mode == "threshold"
    for pool, bound in sorted(config.bounds, key=lambda entry: entry[1]) if by_threshold else config.bounds:
        if by_threshold:
            within = (share <= bound + config.epsilon).sum(dim=-1)
            end = torch.where(within > 0, within + int(config.crossing == "include"), previous)
        else:
            end = (limit.double() * bound).floor().long()
        unit = -(-pool // (config.key_block // config.rounding_tile))
        if unit > 1:
            length = (end - previous).clamp(min=0)
            end = torch.minimum(previous + -(-length // unit) * unit, limit)
            end = torch.where(end == limit, previous + (limit - previous) // unit * unit, end)
        else:
            if pool == 1 and by_threshold:
                floor = (limit.double() * config.min_full).floor().long() + 1
                end = torch.maximum(end, floor)
            end = torch.maximum(torch.minimum(end, limit), previous)
        run = (position >= previous[..., None]) & (position < end[..., None])
        pools = pools.masked_fill(run, pool)
        previous = end
    return pools


def _by_interval(mass: Tensor, config: PSAConfig) -> Tensor:
    """Return pools by sorted position, for mode "energy": each block by the interval that its share falls into."""
    end = mass.cumsum(dim=-1)
    total = end[..., -1:]
    end = end / total
    share = end if config.energy_rule == "end" else torch.cat([torch.zeros_like(end[..., :1]), end[..., :-1]], dim=-1)
    pools = torch.zeros(mass.shape, dtype=torch.uint8, device=mass.device)
    lower = 0.0
    for pool, bound in config.bounds:
        if config.energy_rule == "end":
            inside = (share > lower) & (share <= bound)
        else:
            inside = (share >= lower) & (share < bound)
        pools = pools.masked_fill(inside & (mass > 0), pool)
        lower = max(lower, bound)
    return pools
