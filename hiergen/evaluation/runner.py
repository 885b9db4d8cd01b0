"""How every evaluation runs, whatever it measures: check, open, compute in parts, summarize, publish.

A kind of evaluation is a subclass of `Evaluation`, whose five methods are called in the order in which they stand. What is wrong shows
as early as it can: settings first, then models, then data, and nothing long begins in a folder that belongs to another evaluation.
"""

from __future__ import annotations

import abc
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from hiergen.config import to_json
from hiergen.environment import choose_device
from hiergen.evaluation.features.distances import shown_name
from hiergen.evaluation.features.references import Reference
from hiergen.evaluation.parts import Parts, refuse_others, run_parts
from hiergen.evaluation.protocol import environment, process_state
from hiergen.evaluation.report import number, publish
from hiergen.evaluation.settings import EvaluationSettings
from hiergen.files import check_writable
from hiergen.telling import counted, say, say_next

S = TypeVar("S", bound=EvaluationSettings)


@dataclasses.dataclass(frozen=True)
class Work:
    """What is computed item by item; see `run_parts`.

    Attributes:
        count: Number of items.
        compute: Maps the indices of a batch, and what was loaded for them, to results with one row per item.
        what: Caption of the progress bar.
        load: Loads what `compute` needs, ahead of it in threads; None loads nothing.
    """

    count: int
    compute: Callable[[range, Any], dict[str, Tensor]]
    what: str
    load: Callable[[range], Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """What an evaluation found: the entries of its report, and what belongs beside them.

    Attributes:
        what: What was evaluated, as the first sentence of the report.
        metrics: Metrics by name.
        protocol: Rules under which they were measured, by name.
        extractor: Name, description and fingerprint of the feature extractor.
        reference: What the set was compared with, as JSON values.
        counts: Numbers of items by name.
        seed: Seed of the random draws.
        warnings: Sentences that a reader of the metrics must know.
        more: Entries that some kinds have: "items", "agreement", "intervals_95", "rate_distortion", "bias", "tokens".
        values: What confidence intervals are computed from, one row per item.
        statistics: Statistics of the reference, stored beside the report.
        pictures: Rows of uint8 images to show, by caption.
    """

    what: str
    metrics: dict[str, float]
    protocol: dict[str, str]
    extractor: dict[str, str]
    reference: dict[str, Any]
    counts: dict[str, int | None]
    seed: int
    warnings: list[str]
    more: dict[str, Any] = dataclasses.field(default_factory=dict)
    values: dict[str, Tensor] | None = None
    statistics: Reference | None = None
    pictures: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class Evaluation(abc.ABC, Generic[S]):
    """One kind of evaluation: what differs from the others.

    Args:
        settings: What is evaluated, and how.

    Attributes:
        kind: Name of the kind, in reports and in stored parts.
        out: Folder of the report.
        device: Device of models and features.
        found: What the real data are, in a sentence; "" where nothing is said.
        doubts: Warnings that are known before the work begins.
        identity: JSON values that all stored parts depend on, as far as they are known.

    Raises:
        ValueError: If the folder cannot be written to or there is no such device.
    """

    kind: ClassVar[str]

    def __init__(self, settings: S) -> None:
        self.settings = settings
        self.out, self.device = check_writable(settings.out), choose_device(settings.passes.device)
        self.identity: dict[str, Any] = {"kind": self.kind}
        self.found = ""
        self.doubts: list[str] = []

    @abc.abstractmethod
    def check(self) -> None:
        """Raise for whatever can be seen to be wrong before a model or a picture is opened."""

    @abc.abstractmethod
    def open_models(self) -> dict[str, Any]:
        """Open the models; return what stored parts depend on, as far as it is known now."""

    @abc.abstractmethod
    def open_data(self) -> dict[str, Any]:
        """Open everything else that results depend on; return the rest of what stored parts depend on."""

    @abc.abstractmethod
    def prepare(self) -> Work | None:
        """Do what must be done once before the first item; return the work, None where there is none item by item."""

    @abc.abstractmethod
    def summarize(self, parts: Parts | None) -> Findings:
        """Return what the results say; runs on the main process alone."""

    def saved_settings(self) -> dict[str, Any]:
        """Return the settings as a report keeps them."""
        return to_json(self.settings)  # type: ignore[no-any-return]


def run_evaluation(evaluation: Evaluation[Any]) -> dict[str, Any] | None:
    """Run (or continue) an evaluation, write its report and return it; None on all processes but the main one."""
    started, folder = time.perf_counter(), evaluation.out / "parts"
    evaluation.check()
    for open_more in (evaluation.open_models, evaluation.open_data):
        evaluation.identity |= open_more()
        refuse_others(folder, evaluation.identity)
    work, parts = evaluation.prepare(), None
    if work is not None:
        if process_state().is_main_process:
            if evaluation.found:
                say(f"data: {evaluation.found}")
            for doubt in evaluation.doubts:
                say(f"warning: {doubt}")
            say(f"evaluate {evaluation.kind}: {counted(work.count, 'item')} on {evaluation.device} -> {evaluation.out}")
        parts = run_parts(
            folder,
            evaluation.identity,
            work.count,
            work.compute,
            passes=evaluation.settings.passes,
            what=work.what,
            load=work.load,
        )
    if not process_state().is_main_process:
        return None
    found = evaluation.summarize(parts)
    report = {
        "kind": evaluation.kind,
        "what": found.what,
        "metrics": found.metrics,
        "protocol": found.protocol,
        "extractor": found.extractor,
        "reference": found.reference,
        "counts": found.counts,
        "seed": found.seed,
        "settings": evaluation.saved_settings(),
        # By these digits the card of a model knows its own report.
        "models": {
            name: evaluation.identity[name] for name in ("generator", "tokenizer") if name in evaluation.identity
        },
        "environment": environment(evaluation.device),
        "warnings": found.warnings,
        **found.more,
        "wall_time_s": round(time.perf_counter() - started, 1),
    }
    return publish(
        evaluation.out,
        report,
        values=found.values,
        reference=found.statistics,
        pictures=found.pictures,
        device=evaluation.device,
    )


def tell(report: dict[str, Any] | None) -> None:
    """Print the warnings and the metrics of a report and where it lies; nothing on processes that have none."""
    if report is not None:
        extractor = report["extractor"]["name"]
        shown = ", ".join(f"{shown_name(name, extractor)} {number(value)}" for name, value in report["metrics"].items())
        out = report["settings"]["out"]
        for warning in report["warnings"]:
            say(f"warning: {warning}")
        if "agreement" in report:
            print(report["agreement"])
        print(f"{shown}\nreport: {Path(out) / 'report.md'}")
        say_next(f"hiergen evaluate compare {out} OTHER")
