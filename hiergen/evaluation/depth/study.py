"""Plans of a small generator at the same budget, three seeds each: what recursion, ladders, chains and exits cost and give.

    python -m hiergen.evaluation.depth --codes runs/fashion --test-codes runs/fashion-test --out runs/study_depth

The codes are those of a tokenizer, by `hiergen encode`. A stopped study continues. Quality stands beside the parameters of the stack and
its multiplications per token, both: a plan with half of the parameters may cost as much to run. No setting was tuned for one of the
variants.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.checked import Count, Positive
from hiergen.data.codes import CodeSet
from hiergen.evaluation.depth.exits import exits_table, read_exits
from hiergen.evaluation.depth.variants import CONVERSIONS, EXITING, LOOPED, VARIANTS
from hiergen.evaluation.study import Study, StudyResult, StudySettings
from hiergen.files import write_text
from hiergen.generators.level_ar.model import LevelAR
from hiergen.nn.depth.chains import ChainLinear
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import fit
from hiergen.training.tasks.settings import GeneratorTaskConfig

Part = Literal["plans", "conversion", "loops", "exits"]
#: Numbers of loops that a trained model is tried with.
LOOPS = (1, 2, 3, 4, 6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthStudySettings(StudySettings):
    """Budget and data of the study.

    Attributes:
        codes: Codes to train on.
        test_codes: Codes to measure on.
        num_test: Number of them, the first ones.
        parts: What is run: "plans" trains every variant from scratch; "conversion" converts trained ones and trains them on; "loops" tries
            trained ones with other numbers of loops; "exits" reads trained ones at their exits.
        variants: Names of the variants of each part; all if none is named. The first is what others are compared with.
        samples: Number of samples that a variant is trained on.
        more_samples: Number of samples that a converted model is trained on.
        num_generated: Number of samples that are generated with exits by confidence.
        batch_size: Number of samples per step.
        lr: Learning rate from scratch; half of it after a conversion.
    """

    out: str = "runs/study_depth"
    codes: str = "runs/fashion"
    test_codes: str = "runs/fashion-test"
    num_test: Count = 1_000
    parts: tuple[Part, ...] = ("plans", "conversion", "loops", "exits")
    variants: tuple[str, ...] = ()
    samples: Count = 7_680
    more_samples: Count = 2_560
    num_generated: Count = 128
    batch_size: Count = 32
    lr: Positive = 2e-3


class DepthStudy(Study[DepthStudySettings]):
    """The runs of all variants."""

    FREE = (*Study.FREE, "variants", "parts")

    def __init__(self, settings: DepthStudySettings) -> None:
        super().__init__(settings)
        codes = CodeSet.open(settings.test_codes)
        batch = codes.batch([(index, 0) for index in range(min(settings.num_test, len(codes)))], seed=0)
        self.ids, self.labels = codes.pyramid(batch).concat(), batch["label"]

    def part(self, name: Part) -> StudyResult:
        """Run what is missing of a part, and return all of it."""
        run: dict[Part, Callable[[str, int, Path], Mapping[str, float]]] = {
            "plans": self._from_scratch,
            "conversion": self._converted,
            "loops": self._looped,
            "exits": lambda variant, seed, folder: read_exits(
                self._trained(variant, seed), self.ids, self.labels, seed=seed, count=self.settings.num_generated
            ),
        }
        tables: dict[Part, Mapping[str, Any]] = {
            "plans": VARIANTS,
            "conversion": CONVERSIONS,
            "loops": {variant: VARIANTS[variant] for variant in LOOPED},
            "exits": {variant: VARIANTS[variant] for variant in EXITING},
        }
        chosen = [variant for variant in self.settings.variants or tables[name] if variant in tables[name]]
        return self.run(name, run[name], chosen, {variant: tables[name][variant] for variant in chosen})

    def _from_scratch(self, variant: str, seed: int, folder: Path) -> Mapping[str, float]:
        model = self._trained(variant, seed)
        return {**self.nats(model), **cost(model)}

    def _converted(self, variant: str, seed: int, folder: Path) -> Mapping[str, float]:
        made = CONVERSIONS[variant](self._trained(CONVERSIONS[variant].source, seed))
        made.save_pretrained(folder / "start")
        found = {"at_once": self.nats(made)["nats"], **cost(made)}
        return {**found, **self.nats(self._train({}, seed, folder, str(folder / "start")))}

    def _looped(self, variant: str, seed: int, folder: Path) -> Mapping[str, float]:
        trained = self._trained(variant, seed)
        found = {}
        for loops in LOOPS:
            plan = LOOPED[variant](loops).to_json()
            made: LevelAR = LevelAR.from_config({**trained.config, "plan": plan}).eval()
            made.load_state_dict(trained.state_dict())
            found[f"loops_{loops}"] = self.nats(made)["nats"]
        return found

    def _trained(self, variant: str, seed: int) -> LevelAR:
        """Return a variant trained from scratch, now or before."""
        return self._train(VARIANTS[variant], seed, self.out / "plans" / variant / f"seed-{seed}", None)

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
            trackers=(),
        )
        made: LevelAR = LevelAR.from_pretrained(fit(config, title=f"{folder.parent.name}, seed {seed}").model_dir)
        return made.eval()

    @torch.no_grad()
    def nats(self, model: LevelAR) -> dict[str, float]:
        """Return the held-out nats per token.

        Where a model has several chains or exits, also those of the first one ("first_nats"), and those where the first one reads the
        finest level alone ("fine_first_nats"), which is exact and half of the tokens or more.
        """
        read = model.chain_logits if model.config["chains"] else model.exit_logits
        every = [read(ids, labels) for ids, labels in zip(self.ids.split(250), self.labels.split(250), strict=True)]
        first, last = (errors(torch.cat([logits[place] for logits in every]), self.ids) for place in (0, -1))
        fine = model.specs[-1].num_tokens
        mixed = torch.cat([last[:, :-fine], first[:, -fine:]], dim=1)
        return {"nats": last.mean().item(), "first_nats": first.mean().item(), "fine_first_nats": mixed.mean().item()}


def errors(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the nats of every token `(b, n)`, from its logits `(b, n, v)`."""
    return F.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)


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


def table(result: StudyResult, columns: Mapping[str, str], *, costs: bool = True) -> str:
    """Return Markdown: one row per variant.

    Args:
        result: What was measured.
        columns: Titles of the measures by name. What equals "nats" for all seeds is left empty: there is one chain or exit alone.
        costs: Whether what the stack costs stands in front, and the difference of "nats" to the first variant, paired by seed, behind.
    """
    titles = ["parameters", "multiplications"] * costs + [*columns.values()]
    titles += [f"difference to {result.baseline}"] * costs
    lines = ["| | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for variant, seeds in result.values.items():
        cells = [f"{result.estimate(variant, name).mean:,.0f}" for name in ("parameters", "multiplications") if costs]
        for name in columns:
            is_one = name.endswith("first_nats") and all(found[name] == found["nats"] for found in seeds.values())
            cells.append("" if is_one else result.estimate(variant, name).text())
        if costs:
            is_baseline = variant == result.baseline
            cells.append("" if is_baseline else result.difference(variant, "nats").text(signed=True))
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


_NATS = {"nats": "held-out nats per token"}
_FIRST = {"first_nats": "first chain or exit", "fine_first_nats": "first one for the finest level"}


def run_depth_study(settings: DepthStudySettings) -> None:
    """Run what is missing of the parts of the study and write their tables."""
    torch.set_num_threads(1)
    study = DepthStudy(settings)
    for part in settings.parts:
        result = study.part(part)
        if part == "plans":
            text = table(result, {**_NATS, **_FIRST})
        elif part == "conversion":
            text = table(result, {"at_once": "held-out nats at once", "nats": "after training on"})
        elif part == "loops":
            text = table(result, {f"loops_{loops}": f"{loops} loops" for loops in LOOPS}, costs=False)
        else:
            text = exits_table(result)
        write_text(Path(settings.out) / f"{part}.md", text)
        print(text)
