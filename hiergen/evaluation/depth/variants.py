"""What the study of plans compares: stacks from scratch, conversions of a trained one, and loops that a model was not trained with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hiergen.generators.level_ar.model import LevelAR
from hiergen.nn.depth.conversion import to_ladder, to_recursive
from hiergen.nn.depth.plan import DepthPlan, cycle, ladder, plain, sandwich, sequence

#: Width of all variants: small, so that there is little to spare.
WIDTH: dict[str, Any] = {"dim": 64, "num_heads": 4, "ffn_dim": 128}


def _planned(plan: DepthPlan, **changes: Any) -> dict[str, Any]:
    return {**WIDTH, "depth": plan.num_blocks, "plan": plan.to_json(), **changes}


_CHAINS: dict[str, Any] = {**WIDTH, "depth": 4, "chains": [2, 2]}
#: What each variant changes of `har-tiny`. The first is the baseline.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain-4": {**WIDTH, "depth": 4},
    "plain-3": _planned(plain(3)),
    "plain-2": _planned(plain(2)),
    "cycle-2x2": _planned(cycle(2, loops=2)),
    "cycle-2x2-rank-8": _planned(cycle(2, loops=2, rank=8)),
    "cycle-2x2-injected": _planned(cycle(2, loops=2, inject=True)),
    "cycle-2x2-exits": _planned(cycle(2, loops=2), exit_losses="aggressive", exit_distillation=True),
    "cycle-3x2": _planned(cycle(3, loops=2)),
    "sequence-2x2": _planned(sequence(2, loops=2)),
    "sequence-2x2-projected": _planned(sequence(2, loops=2, project=True)),
    "sandwich-1+1x2+1": _planned(sandwich(1, 1, 1, loops=2)),
    "sandwich-1+1x4+1": _planned(sandwich(1, 1, 1, loops=4)),
    "ladder-4": _planned(ladder(4)),
    "plain-4-half-width": {"dim": 32, "num_heads": 2, "ffn_dim": 64, "depth": 4},
    "chains-2+2": {**_CHAINS, "chain_losses": True},
    "chains-2+2-last-loss": _CHAINS,
    "chains-2+2-shared-keys": {**_CHAINS, "share_kv": True, "chain_losses": True},
}


class Conversion(NamedTuple):
    """How a trained variant is converted before it is trained on.

    Attributes:
        source: The variant.
        start: How the blocks of two loops begin, "ladder" for a ladder of the same blocks, or "" for the model as it is.
        rank: Rank of every step's difference to its block.
    """

    source: str = "plain-4"
    start: str = ""
    rank: int = 0

    def __call__(self, model: LevelAR) -> LevelAR:
        """Return the converted model."""
        if not self.start:
            return model
        made: LevelAR = (
            to_ladder(model)
            if self.start == "ladder"
            else to_recursive(model, loops=2, start=self.start, rank=self.rank)
        )
        return made


#: Conversions, all trained on for as long. The trained baseline itself is the row that is fair to it; "plain-2" is as small as two loops.
CONVERSIONS: dict[str, Conversion] = {
    "plain-4": Conversion(),
    "plain-2": Conversion("plain-2"),
    "ladder": Conversion(start="ladder"),
    **{
        f"{start}-rank-{rank}": Conversion(start=start, rank=rank)
        for start in ("average", "stepwise", "lower")
        for rank in (0, 4, 16)
    },
}

#: Plans with another number of loops than a variant was trained with, from that number.
LOOPED: dict[str, Callable[[int], DepthPlan]] = {
    "cycle-2x2": lambda loops: cycle(2, loops=loops),
    "sandwich-1+1x2+1": lambda loops: sandwich(1, 1, 1, loops=loops),
    "sandwich-1+1x4+1": lambda loops: sandwich(1, 1, 1, loops=loops),
}
#: Variants whose first exit is read: not trained for it, and trained.
EXITING = ("cycle-2x2", "cycle-2x2-exits")
