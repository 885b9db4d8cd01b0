"""What the reports of the quickstarts share: tables in Markdown, the part about training, versions, and how they are published."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hiergen import __version__
from hiergen.files import write_json, write_text
from hiergen.pipelines.base import HiergenPipeline
from hiergen.pipelines.card import write_card
from hiergen.pipelines.encoding import tokenizer_fingerprint
from hiergen.quickstart.stages import StageTimes
from hiergen.telling import say_next


def publish(
    out: Path,
    report: dict[str, Any],
    page: Callable[[Mapping[str, Any]], str],
    *,
    pipeline: HiergenPipeline,
    more: Mapping[str, torch.nn.Module] | None = None,
    times: StageTimes,
    console: Console,
) -> dict[str, Any]:
    """Write a report as `report.json` and `report.md`, and return it; write the card of the pipeline again, which quotes its summary.

    Added to the report are parameters, fingerprints of the pipeline's models, and seconds.

    Args:
        out: Folder of the run, which has the pipeline in `pipeline`.
        report: The measurements; "summary" is a line of them.
        page: Makes a page of Markdown from the report.
        pipeline: The pipeline that was measured.
        more: Other models whose parameters are counted, by name.
        times: Seconds of the stages.
        console: Where the place of the report is printed.
    """
    report["parameters"] = {
        name: sum(parameter.numel() for parameter in model.parameters())
        for name, model in {**pipeline.components, **(more or {})}.items()
    }
    report["models"] = {name: tokenizer_fingerprint(model) for name, model in pipeline.components.items()}
    report["seconds"] = {**times.seconds, "total": times.total}
    write_json(out / "report.json", report)
    write_text(out / "report.md", page(report))
    write_card(pipeline, out / "pipeline")
    console.print(f"report in {out / 'report.md'}, everything else beside it")
    say_next(f"hiergen demo {out / 'pipeline'}")
    return report


def versions() -> dict[str, str]:
    """Return the versions that a report names."""
    return {"hiergen": __version__, "torch": torch.__version__, "python": platform.python_version()}


def training_sections(report: Mapping[str, Any]) -> list[str]:
    """Return the end of every page: curves, parameters, seconds, versions."""
    return [
        "## Training",
        "![curves](curves.png)",
        table(["model", "parameters"], [[name, f"{count:,}"] for name, count in report["parameters"].items()]),
        table(["stage", "seconds"], [[name, f"{value:.1f}"] for name, value in report["seconds"].items()]),
        f"Versions: {', '.join(f'{name} {version}' for name, version in report['versions'].items())}.",
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
