"""`hiergen bench psa-quality`: how far sparse attention is from exact attention, by density, estimator and kind of mask.

On synthetic heads with known structure (`attention_inputs`), so it compares methods and says little about a model.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.benchmarks.attention_inputs import structured_heads
from hiergen.benchmarks.psa import config_of_density, video_grid
from hiergen.kernels.pyramid_attention import plan_from_scores, reference_attention
from hiergen.kernels.pyramid_attention.config import ImportanceName
from hiergen.kernels.pyramid_attention.importance import ImportanceRequest, estimate_importance

ESTIMATORS: tuple[ImportanceName, ...] = ("sampled", "sampled_softmax", "pyramid", "block_mean", "antidiagonal")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to compare.

    Attributes:
        tokens: Of the sequence, about.
        heads: Heads; local, content and mixed ones take turns.
        dim: Channels of a head.
        densities: Shares of the dense product.
        query_block: Queries of a block.
        key_block: Keys of a block.
        sharpness: Standard deviation of the scores, in nats.
        seed: Of inputs and samples.
    """

    tokens: int = 2048
    heads: int = 3
    dim: int = 64
    densities: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    query_block: int = 32
    key_block: int = 32
    sharpness: float = 1.5
    seed: int = 0


def run(settings: Settings) -> dict[str, Any]:
    """Measure, print a table in Markdown, return the rows: relative errors, and the attention mass in the top 10 % of blocks."""
    rng = torch.Generator().manual_seed(settings.seed)
    grid = video_grid(settings.tokens)
    q, k, v = structured_heads(grid, heads=settings.heads, dim=settings.dim, rng=rng, sharpness=settings.sharpness)
    exact = F.scaled_dot_product_attention(q, k, v)
    mass = block_mass(q, k, settings.query_block, settings.key_block)
    request = ImportanceRequest(query_block=settings.query_block, key_block=settings.key_block, rng=rng, stride=8)
    scores = {name: estimate_importance(name, q, k, request) for name in ESTIMATORS} | {"exact mass": mass}
    rows = []
    for name, score in scores.items():
        row: dict[str, Any] = {"importance": name, "mass_in_top_tenth": captured_mass(score, mass, 0.1)}
        for density in settings.densities:
            config = config_of_density(density, settings.query_block, settings.key_block, "pyramid")
            plan = plan_from_scores(score, q.shape[2], k, config)
            computed = float(plan.density)
            binary = plan_from_scores(score, q.shape[2], k, dataclasses.replace(config, bounds=((1, computed),)))
            for kind, a_plan in (("pyramid", plan), ("binary", binary)):
                out, _ = reference_attention(q, k, v, a_plan)
                row[f"{kind}@{density}"] = float((out - exact).norm() / exact.norm())
                row[f"{kind}_density@{density}"] = float(a_plan.density)
        rows.append(row)
    _print(rows, settings)
    return {"settings": dataclasses.asdict(settings), "grid": list(grid), "rows": rows}


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


def _print(rows: list[dict[str, Any]], settings: Settings) -> None:
    head = ["importance", "mass in top 10 %", *(f"density {x}: pyramid / binary" for x in settings.densities)]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        errors = (f"{row[f'pyramid@{x}']:.3f} / {row[f'binary@{x}']:.3f}" for x in settings.densities)
        print("| " + " | ".join([row["importance"], f"{row['mass_in_top_tenth']:.3f}", *errors]) + " |")
