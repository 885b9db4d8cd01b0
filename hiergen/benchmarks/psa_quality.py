"""`hiergen bench psa-quality`: how far sparse attention is from exact attention, by density, estimator and kind of mask.

On synthetic heads with known structure (`attention_inputs`), which compare methods and say little about a model, or on the queries, keys
and values of a model (`inputs`). Quotas and thresholds are compared at the same mean density, and so are the pyramid and a binary block mask.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.benchmarks.measuring.attention_inputs import structured_heads
from hiergen.benchmarks.psa import binary_config, config_of_density, video_grid
from hiergen.benchmarks.settings import PSAQualitySettings
from hiergen.kernels.names import ImportanceName
from hiergen.kernels.pyramid_attention import PSAConfig, PyramidPlan, plan_from_scores
from hiergen.kernels.pyramid_attention.backends.gather import gather_attention
from hiergen.kernels.pyramid_attention.planning.importance import ImportanceRequest, estimate_importance
from hiergen.pretrained.weights import read_state_dict

ESTIMATORS: tuple[ImportanceName, ...] = ("sampled", "sampled_softmax", "pyramid", "block_mean", "antidiagonal")


#: Kinds of plans of one mean density: pools or a plain block mask, each with the same number of blocks in every row ("quota") or
#: with as many as the row's scores ask for ("threshold").
KINDS = ("pyramid", "binary", "pyramid_threshold", "binary_threshold")


def run(settings: PSAQualitySettings) -> dict[str, Any]:
    """Measure, print a table in Markdown, return the rows: relative errors, and the attention mass in the top 10 % of blocks.

    Raises:
        ValueError: If the file of inputs holds other tensors than q, k and v of one 4-D shape.
    """
    rng = torch.Generator().manual_seed(settings.seed)
    q, k, v = _inputs(settings, rng)
    exact = F.scaled_dot_product_attention(q, k, v)
    mass = block_mass(q, k, settings.query_block, settings.key_block)
    request = ImportanceRequest(query_block=settings.query_block, key_block=settings.key_block, rng=rng, stride=8)
    scores = {name: estimate_importance(name, q, k, request) for name in ESTIMATORS} | {"exact mass": mass}
    rows = []
    for name, score in scores.items():
        row: dict[str, Any] = {"importance": name, "mass_in_top_tenth": captured_mass(score, mass, 0.1)}
        for density in settings.densities:
            for kind, plan in plans_of_density(score, k, q.shape[2], density, settings).items():
                out, _ = gather_attention(q, k, v, plan)
                row[f"{kind}@{density}"] = float((out - exact).norm() / exact.norm())
                row[f"{kind}_density@{density}"] = float(plan.density)
        rows.append(row)
    _print(rows, settings)
    described = dataclasses.asdict(settings) | {"inputs": settings.inputs and str(settings.inputs)}
    return {"settings": described, "shape": list(q.shape), "rows": rows}


def plans_of_density(
    scores: Tensor, k: Tensor, num_queries: int, density: float, settings: PSAQualitySettings
) -> dict[str, PyramidPlan]:
    """Return a plan of each of `KINDS`; all have the density that the first one has after whole blocks were counted."""
    quota = config_of_density(density, settings.query_block, settings.key_block, "pyramid")
    unforced = dataclasses.replace(quota, mode="threshold", rules=dataclasses.replace(quota.rules, min_full=0.0))

    def plan(config: PSAConfig) -> PyramidPlan:
        return plan_from_scores(scores, num_queries, k, config)

    def threshold(shares: tuple[tuple[int, float], ...]) -> PyramidPlan:
        """Scale the shares together, by bisection, until the mean density is the one of the first plan."""
        low, high = 0.0, 2.0
        for _ in range(14):
            middle = (low + high) / 2
            bounds = tuple((pool, min(share * middle, 1.0)) for pool, share in shares)
            tried = plan(dataclasses.replace(unforced, bounds=bounds))
            low, high = (middle, high) if float(tried.density) < computed else (low, middle)
        return tried

    pyramid = plan(quota)
    computed = float(pyramid.density)
    return {
        "pyramid": pyramid,
        "binary": plan(binary_config(quota, pyramid)),
        # The proportions of the published preset for the largest model, up to reading everything.
        "pyramid_threshold": threshold(((1, 0.5), (2, 0.625), (4, 0.75), (8, 1.0))),
        "binary_threshold": threshold(((1, 1.0),)),
    }


def _inputs(settings: PSAQualitySettings, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    if settings.inputs is None:
        grid = video_grid(settings.tokens)
        return structured_heads(grid, heads=settings.heads, dim=settings.dim, rng=rng, sharpness=settings.sharpness)
    found = read_state_dict(settings.inputs)
    shapes = {name: tuple(x.shape) for name, x in found.items()}
    if sorted(shapes) != ["k", "q", "v"] or len(set(shapes.values())) > 1 or len(shapes["q"]) != 4:
        raise ValueError(f"inputs holds {shapes}, expected q, k and v of one shape (1, heads, tokens, channels)")
    return found["q"].float(), found["k"].float(), found["v"].float()


def block_mass(q: Tensor, k: Tensor, query_block: int, key_block: int) -> Tensor:
    """Return the mean attention weight that each query block gives each key block, from exact attention."""
    weight = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    missing_q, missing_k = -q.shape[2] % query_block, -k.shape[2] % key_block
    weight = F.pad(weight, (0, missing_k, 0, missing_q)).unflatten(-1, (-1, key_block)).sum(-1)
    return weight.unflatten(2, (-1, query_block)).mean(3)


def captured_mass(scores: Tensor, mass: Tensor, share: float) -> float:
    """Return the share of attention that lies in each row's best `share` of blocks by `scores`."""
    count = max(int(scores.shape[-1] * share), 1)
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return float((mass.gather(-1, best).sum(-1) / mass.sum(-1)).mean())


def _print(rows: list[dict[str, Any]], settings: PSAQualitySettings) -> None:
    print("Errors: quotas, pyramid / binary; thresholds, pyramid / binary.\n")
    head = ["importance", "mass in top 10 %", *(f"density {x}" for x in settings.densities)]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        errors = (
            "{:.3f} / {:.3f}; {:.3f} / {:.3f}".format(*(row[f"{kind}@{x}"] for kind in KINDS))
            for x in settings.densities
        )
        print("| " + " | ".join([row["importance"], f"{row['mass_in_top_tenth']:.3f}", *errors]) + " |")
