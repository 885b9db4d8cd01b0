"""Plans of a small generator at the same budget, three seeds each: what recursion, ladders and chains cost and give.

    run_depth_study(DepthStudySettings(codes="runs/digits", test_codes="runs/digits-test", part="plans"))

The codes are those of a tokenizer, by `hiergen encode`. A stopped study continues. Every table has the parameters of the stack and its
multiplications per token, both: a plan with half of the parameters may cost as much to run. No setting was tuned for one of the variants.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from hiergen.checked import Count, Positive
from hiergen.data.codes import CodeSet
from hiergen.evaluation.study import Study, StudyResult, StudySettings
from hiergen.files import write_text
from hiergen.generators.level_ar.model import LevelAR
from hiergen.nn.depth.chains import ChainLinear
from hiergen.nn.depth.conversion import to_recursive
from hiergen.nn.depth.plan import DepthPlan, cycle, ladder, plain, sandwich, sequence
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import fit
from hiergen.training.tasks.settings import GeneratorTaskConfig


def _planned(plan: DepthPlan, **changes: Any) -> dict[str, Any]:
    return {"depth": plan.num_blocks, "plan": plan.to_json(), **changes}


_CHAINS: dict[str, Any] = {"dim": 192, "num_heads": 4, "chains": [2, 2]}
#: What each variant changes of `har-tiny`. The first is the baseline.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain-4": {"depth": 4},
    "cycle-2x2": _planned(cycle(2, loops=2)),
    "cycle-2x2-rank-8": _planned(cycle(2, loops=2, rank=8)),
    "cycle-2x2-injected": _planned(cycle(2, loops=2, inject=True)),
    "cycle-2x2-exits": _planned(cycle(2, loops=2), exit_losses="aggressive", exit_distillation=True),
    "sequence-2x2": _planned(sequence(2, loops=2)),
    "sequence-2x2-projected": _planned(sequence(2, loops=2, project=True)),
    "sandwich-1+1x2+1": _planned(sandwich(1, 1, 1, loops=2)),
    "sandwich-1+1x4+1": _planned(sandwich(1, 1, 1, loops=4)),
    "ladder-4": _planned(ladder(4)),
    "plain-3": _planned(plain(3)),
    "plain-2": _planned(plain(2)),
    "dense-4-heads": {"dim": 192, "num_heads": 4},
    "dense-2-heads": {"dim": 96, "num_heads": 2, "ffn_dim": 256},
    "chains-2+2": {**_CHAINS, "chain_losses": True},
    "chains-2+2-last-loss": _CHAINS,
    "chains-2+2-shared-keys": {**_CHAINS, "share_kv": True, "chain_losses": True},
}
#: Conversions of the trained baseline, each trained on for as long: (start, rank). "plain-4" itself is the row that is fair to it.
CONVERSIONS: dict[str, tuple[Literal["average", "stepwise", "lower"], int] | None] = {
    "plain-4": None,
    **{f"{start}-rank-{rank}": (start, rank) for start in ("average", "stepwise", "lower") for rank in (0, 4, 8, 16)},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthStudySettings(StudySettings):
    """Budget and data of the study.

    Attributes:
        codes: Codes to train on.
        test_codes: Codes to measure on.
        part: "plans" trains every variant from scratch, "conversion" converts the trained baseline and trains it on.
        variants: Names of the variants; all if none is named. The first is what others are compared with.
        samples: Number of samples that a variant is trained on.
        more_samples: Number of samples that a converted model is trained on.
        batch_size: Number of samples per step.
        lr: Learning rate from scratch; half of it after a conversion.
    """

    out: str = "runs/study_depth"
    codes: str = "runs/digits"
    test_codes: str = "runs/digits-test"
    part: Literal["plans", "conversion"] = "plans"
    variants: tuple[str, ...] = ()
    samples: Count = 24_000
    more_samples: Count = 8_000
    batch_size: Count = 32
    lr: Positive = 1e-3


class DepthStudy(Study[DepthStudySettings]):
    """The runs of all variants."""

    FREE = (*Study.FREE, "variants", "part")

    def __init__(self, settings: DepthStudySettings) -> None:
        super().__init__(settings)
        self.test = CodeSet.open(settings.test_codes)

    def plans(self) -> StudyResult:
        """Train and measure the variants."""

        def run(variant: str, seed: int, folder: Path) -> Mapping[str, float]:
            model = self._train(VARIANTS[variant], seed, folder, None)
            return {**self.nats(model), **cost(model)}

        chosen = self.settings.variants or tuple(VARIANTS)
        return self.run("plans", run, chosen, {name: VARIANTS[name] for name in chosen})

    def conversion(self) -> StudyResult:
        """Convert the trained baseline, measure, train on, and measure again."""

        def run(variant: str, seed: int, folder: Path) -> Mapping[str, float]:
            trained = self._train(VARIANTS["plain-4"], seed, self.out / "plans" / "plain-4" / f"seed-{seed}", None)
            how = CONVERSIONS[variant]
            made = trained if how is None else to_recursive(trained, loops=2, start=how[0], rank=how[1])
            made.save_pretrained(folder / "start")
            found = {"at_once": self.nats(made)["nats"], **cost(made)}
            return {**found, **self.nats(self._train({}, seed, folder, str(folder / "start")))}

        chosen = self.settings.variants or tuple(CONVERSIONS)
        return self.run("conversion", run, chosen, {name: CONVERSIONS[name] for name in chosen})

    def _train(self, overrides: Mapping[str, Any], seed: int, folder: Path, init: str | None) -> LevelAR:
        settings = self.settings
        config = TrainConfig(
            task=GeneratorTaskConfig(preset="har-tiny", overrides=dict(overrides), codes=settings.codes),
            out=str(folder / "generator"),
            init=init,
            samples=settings.samples if init is None else settings.more_samples,
            batch_size=settings.batch_size,
            seed=seed,
            optim=OptimConfig(
                lr=settings.lr if init is None else settings.lr / 2,
                weight_decay=0.05,
                warmup_samples=min(1_000, settings.samples // 4),
                final_lr_ratio=0.05,
            ),
            ema_decay=0.99,
            log_every=1_000,
        )
        made: LevelAR = LevelAR.from_pretrained(fit(config, title=f"{folder.parent.name}, seed {seed}").model_dir)
        return made.eval()

    @torch.no_grad()
    def nats(self, model: LevelAR) -> dict[str, float]:
        """Return the held-out nats per token, and those of the first chain or exit where a model has several."""
        batch = self.test.batch([(index, 0) for index in range(len(self.test))], seed=0)
        pyramid, labels = self.test.pyramid(batch), batch["label"]
        ids = pyramid.concat()
        every = model.chain_logits(ids, labels) if model.config["chains"] else model.exit_logits(ids, labels)
        first, last = (
            torch.nn.functional.cross_entropy(x.flatten(0, 1), ids.flatten()).item() for x in (every[0], every[-1])
        )
        return {"nats": last, "first_nats": first}


def cost(model: LevelAR) -> dict[str, float]:
    """Return the parameters of a model's stack, and the multiplications of its matrices per token; attention's own are left out."""
    stack = model.blocks

    def numbers(block: torch.nn.Module) -> int:
        layers = [layer for layer in block.modules() if isinstance(layer, torch.nn.Linear)]
        return sum(
            int(layer.weight.count_nonzero()) if isinstance(layer, ChainLinear) else layer.weight.numel()
            for layer in layers
        )

    zeros = sum(
        layer.weight.numel() - int(layer.weight.count_nonzero())
        for layer in stack.modules()
        if isinstance(layer, ChainLinear)
    )
    steps = sum(numbers(stack.unwrapped[step.block]) for step in stack.plan.steps)
    projections = sum(numbers(part) for name, part in stack.named_modules() if name.endswith("projections"))
    return {
        "parameters": float(sum(parameter.numel() for parameter in stack.parameters()) - zeros),
        "multiplications": float(steps + projections),
    }


def run_depth_study(settings: DepthStudySettings) -> None:
    """Run a part of the study and write its table."""
    torch.set_num_threads(1)
    study = DepthStudy(settings)
    result = study.plans() if settings.part == "plans" else study.conversion()
    columns = {"at_once": "held-out nats at once"} if settings.part == "conversion" else {}
    text = result.table({**columns, "nats": "held-out nats per token", "first_nats": "first chain or exit"})
    text += "\n" + result.table(
        {"parameters": "parameters of the stack", "multiplications": "multiplications per token"}, digits=0
    )
    write_text(Path(settings.out) / f"{settings.part}.md", text)
    print(text)
