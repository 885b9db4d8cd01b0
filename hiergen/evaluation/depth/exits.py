"""Exits of a trained recursive model by confidence, and what they would save in a batch of loops (`hiergen.generators.level_ar.occupancy`).

A step of generation makes a group of tokens, and leaves at the first exit where all of them are sure. "Oracle" leaves at the first exit
whose likeliest ids are those of the last: no rule can know it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from hiergen.evaluation.study import StudyResult
from hiergen.generators.level_ar.group_layout import build_layout
from hiergen.generators.level_ar.model import LevelAR
from hiergen.generators.level_ar.occupancy import simulate
from hiergen.generators.level_ar.settings import LevelARSettings
from hiergen.seeding import make_rng

CONFIDENCES = (0.05, 0.1, 0.2, 0.4, 0.8)
#: Slots of the simulated batch.
SLOTS = 32


@torch.no_grad()
def read_exits(
    model: LevelAR, ids: Int[Tensor, "b n"], labels: Int[Tensor, " b"], *, seed: int, count: int
) -> dict[str, float]:
    """Return loops, nats and throughput of every rule.

    Of held-out tokens: "loops_RULE" is the mean number of loops per step, "nats_RULE" the mean error per token at these exits, where the
    skipped loops are run afterwards (fill "run"), and "rate_RULE" the simulated throughput over that of a batch that never exits and takes the next sequence at once. Of
    generated ones, where they are not (fill "copy"): "drawn_loops_RULE" and "drawn_rate_RULE".

    Args:
        model: A model whose plan has exits.
        ids: Held-out tokens.
        labels: Their classes.
        seed: Seed of what is generated.
        count: Number of samples to generate.
    """
    parts = [model.exit_logits(*part) for part in zip(ids.split(250), labels.split(250), strict=True)]
    logits = torch.stack([torch.cat(every).float() for every in zip(*parts, strict=True)])  # (exits, b, n, v)
    errors = torch.stack([F.cross_entropy(x.transpose(1, 2), ids, reduction="none") for x in logits])
    likeliest, sure = logits.argmax(dim=-1), logits.softmax(dim=-1).amax(dim=-1)
    layout = build_layout(model.specs, model.config["layout"], model.config["num_ar_tokens"])
    sizes = [step.end - step.start for step in layout.steps]
    rules = {f"{confidence}": sure >= confidence for confidence in CONFIDENCES}
    rules["oracle"] = likeliest == likeliest[-1]
    found = {}
    for name, leaves in rules.items():
        leaves[-1] = True
        # The first exit that all tokens of a group take: (b, groups).
        taken = torch.stack([part.all(dim=-1).float().argmax(dim=0) for part in leaves.split(sizes, dim=-1)], dim=1)
        places = taken.repeat_interleave(torch.tensor(sizes), dim=1)
        found[f"nats_{name}"] = errors.gather(0, places[None]).mean().item()
        found |= _saved(taken + 1, len(logits), name)
    for confidence in CONFIDENCES:
        drawn: list[Tensor] = []
        how = LevelARSettings(exit_confidence=confidence, exit_fill="copy")
        wanted = torch.arange(count) % model.config["num_classes"]
        model.generate(wanted, how, rng=make_rng(seed, "exits"), on_exits=drawn.append)
        saved = _saved(torch.stack(drawn, dim=1), len(logits), f"{confidence}")
        found |= {f"drawn_{name}": value for name, value in saved.items()}
    return found


def _saved(exits: Int[Tensor, "b g"], num_loops: int, name: str) -> dict[str, float]:
    how = {"batch_size": SLOTS, "num_loops": num_loops}
    ticks = {batching: simulate(exits.tolist(), batching=batching, **how).ticks for batching in ("sequence", "depth")}
    return {f"loops_{name}": exits.double().mean().item(), f"rate_{name}": ticks["sequence"] / ticks["depth"]}


def exits_table(result: StudyResult) -> str:
    """Return Markdown: for each variant one row per rule."""
    titles = (
        "| leaves where | loops | held-out nats per token | throughput | loops, generated | throughput, generated |"
    )
    parts = []
    for variant in result.values:
        lines = [f"{variant}:\n", titles, "|---" * 6 + "|"]
        for rule in (*map(str, CONFIDENCES), "oracle"):
            names = [f"{what}_{rule}" for what in ("loops", "nats", "rate", "drawn_loops", "drawn_rate")]
            # What an oracle would do with tokens that it makes itself cannot be asked.
            cells = [
                result.estimate(variant, name).text() if rule != "oracle" or "drawn" not in name else ""
                for name in names
            ]
            shown = rule if rule == "oracle" else f"all are sure by {rule}"
            lines.append(f"| {shown} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
