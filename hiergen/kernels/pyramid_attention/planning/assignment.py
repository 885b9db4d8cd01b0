"""From the scores of key blocks to pools: the most important blocks are read in full, the next at pool 2, and so on.

Scores of a row are sorted in descending order, equal ones by lower id; pools are runs of that order.
Letters: `b` batch, `h` query heads, `i` query blocks, `j` key blocks.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from hiergen.kernels.pyramid_attention.config import PSAConfig
from hiergen.kernels.pyramid_attention.triton.availability import runs_triton
from hiergen.kernels.pyramid_attention.triton.operators import MAX_COLUMNS, assign_pools_op


def assign_pools(
    scores: Float[Tensor, "b h i j"], config: PSAConfig, *, visible: Int[Tensor, " i"] | None = None
) -> UInt8[Tensor, "b h i j"]:
    """Return the pool of every block.

    Args:
        scores: Nonnegative float32 numbers; their scale in a row is free.
        config: Bounds, mode and rules.
        visible: How many leading key blocks each row may see; shares are counted among these. All by default.

    Source:
        Pyramid Sparse Attention, arXiv:2512.04025, section 3, and the rules of its code that the paper does not state: the
        crossing block, the floor under pool 1, rounding to whole tiles (`OfficialRules`). Scores are summed in float64, so
        that the order of the sum decides nothing; the official code sums in the model's dtype.
    """
    if visible is None:
        visible = torch.full((scores.shape[2],), scores.shape[-1], device=scores.device)
    if runs_triton(scores.device) and scores.shape[-1] <= MAX_COLUMNS:
        return assign_by_kernel(scores, config, visible)
    return assign_by_sorting(scores, config, visible)


def assign_by_kernel(scores: Tensor, config: PSAConfig, visible: Tensor) -> UInt8[Tensor, "b h i j"]:
    """Return the pools through one Triton program per row."""
    pools, bounds, units = zip(*_runs(config), strict=True)
    rules = config.rules
    include = (rules.energy_rule == "start") if config.mode == "energy" else (rules.crossing == "include")
    return assign_pools_op(
        scores, visible, list(pools), list(bounds), list(units), config.mode, rules.epsilon, rules.min_full, include
    )


def assign_by_sorting(scores: Tensor, config: PSAConfig, visible: Tensor) -> UInt8[Tensor, "b h i j"]:
    """Return the pools in plain PyTorch."""
    columns = torch.arange(scores.shape[-1], device=scores.device)
    hidden = columns >= visible[:, None]
    order = scores.float().masked_fill(hidden, -torch.inf).sort(dim=-1, descending=True, stable=True)
    mass = order.values.clamp(min=0.0)
    if config.mode == "energy":
        pools = _by_interval(mass, config)
    else:
        pools = _by_runs(mass, config, visible)
    return torch.zeros_like(pools).scatter_(-1, order.indices, pools).masked_fill_(hidden, 0)


def _runs(config: PSAConfig) -> list[tuple[int, float, int]]:
    """Return (pool, bound, blocks that a run is rounded to) in the order of assignment."""
    bounds = sorted(config.bounds, key=lambda entry: entry[1]) if config.mode == "threshold" else config.bounds
    tiles = config.key_block // config.rules.rounding_tile
    return [(pool, bound, -(-pool // tiles)) for pool, bound in bounds]


def _by_runs(mass: Tensor, config: PSAConfig, visible: Tensor) -> Tensor:
    """Return pools by sorted position, for modes "threshold" and "quota"."""
    position = torch.arange(mass.shape[-1], device=mass.device)
    share = mass.double().cumsum(dim=-1)
    share = share / share[..., -1:]
    limit = visible.expand(mass.shape[:-1])
    previous = torch.zeros_like(limit)
    pools = torch.zeros(mass.shape, dtype=torch.uint8, device=mass.device)
    by_threshold, rules = config.mode == "threshold", config.rules
    for pool, bound, unit in _runs(config):
        if by_threshold:
            within = (share <= bound + rules.epsilon).sum(dim=-1)
            end = torch.where(within > 0, within + int(rules.crossing == "include"), previous)
        else:
            end = (limit.double() * bound).floor().long()
        if unit > 1:
            length = (end - previous).clamp(min=0)
            end = torch.minimum(previous + -(-length // unit) * unit, limit)
            end = torch.where(end == limit, previous + (limit - previous) // unit * unit, end)
        else:
            if pool == 1 and by_threshold:
                floor = (limit.double() * rules.min_full).floor().long() + 1
                end = torch.maximum(end, floor)
            end = torch.maximum(torch.minimum(end, limit), previous)
        run = (position >= previous[..., None]) & (position < end[..., None])
        pools = pools.masked_fill(run, pool)
        previous = end
    return pools


def _by_interval(mass: Tensor, config: PSAConfig) -> Tensor:
    """Return pools by sorted position, for mode "energy": each block by the interval that its share falls into."""
    wide, by_end = mass.double(), config.rules.energy_rule == "end"
    end = wide.cumsum(dim=-1)
    share = (end if by_end else end - wide) / end[..., -1:]
    pools = torch.zeros(mass.shape, dtype=torch.uint8, device=mass.device)
    lower = 0.0
    for pool, bound in config.bounds:
        if by_end:
            inside = (share > lower) & (share <= bound)
        else:
            inside = (share >= lower) & (share < bound)
        pools = pools.masked_fill(inside & (mass > 0), pool)
        lower = max(lower, bound)
    return pools
