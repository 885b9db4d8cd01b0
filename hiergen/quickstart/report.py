"""The quickstart's report as Markdown: every number beside what it was measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def markdown_report(report: Mapping[str, Any]) -> str:
    """Return the report of `run_quickstart` as a page to read."""
    rebuilt, made, judge = report["reconstruction"], report["generation"], report["classifier"]
    near = report["nearest_train_image"]
    sections = [
        "# hiergen quickstart",
        f"{report['what'].capitalize()}. Seed {report['settings']['seed']}, {report['settings']['samples_seen']:,} training "
        f"samples for each model, {report['seconds']['total']} s in all.",
        "![samples](samples.png)",
        "## Does it draw the digit that was asked for?",
        f"Judge: {judge['what']}.",
        _table(
            ["images", "judge agrees with the label"],
            [
                ["real test images", f"{judge['real_test_accuracy']:.1%}"],
                ["their reconstructions", f"{judge['reconstruction_accuracy']:.1%}"],
                [made["images"], f"{judge['generated_agreement']:.1%}"],
            ],
        ),
        "## How close are the images to real ones?",
        f"Feature extractor: {report['extractor']['name']}, {report['extractor']['description']}. It recognizes "
        f"{report['extractor']['test_accuracy']:.1%} of the real test images.",
        _table(
            ["", "of", "against", "Fréchet", "kernel", "precision", "recall"],
            [
                ["rFID", *_distance_cells(rebuilt["rfid"])],
                ["gFID", *_distance_cells(made["gfid"])],
                ["yardstick", *_distance_cells(made["real_test_against_train"])],
            ],
        ),
        "## Reconstruction, level by level",
        f"PSNR on {rebuilt['images']}.",
        _table(
            ["levels", "tokens", "PSNR (dB)"],
            [[str(r["levels"]), str(r["tokens"]), f"{r['psnr_db']:.2f}"] for r in rebuilt["psnr_by_levels"]],
        ),
        "![reconstruction](reconstruction.png)",
        *_codebook_section(report["codebook"]),
        "## Are the samples copies?",
        f"{near['what'].capitalize()}.",
        _table(
            ["images", "minimum", "5th percentile", "median"],
            [
                ["generated", *(f"{near['generated'][k]:.3f}" for k in ("min", "p5", "median"))],
                ["real test images", *(f"{near['real_test'][k]:.3f}" for k in ("min", "p5", "median"))],
            ],
        ),
        "## Training",
        "![curves](curves.png)",
        _table(["model", "parameters"], [[name, f"{count:,}"] for name, count in report["parameters"].items()]),
        _table(["stage", "seconds"], [[name, f"{value:.1f}"] for name, value in report["seconds"].items()]),
        f"Versions: {', '.join(f'{name} {version}' for name, version in report['versions'].items())}.",
    ]
    return "\n\n".join(sections) + "\n"


def _codebook_section(codebook: Mapping[str, Any]) -> list[str]:
    if "by_level" not in codebook:
        return ["## Codebook", codebook["what"].capitalize() + "."]
    rows = [("all", codebook["all_levels"]), *((str(k), use) for k, use in enumerate(codebook["by_level"]))]
    cells = [[name, f"{use['used']:.1%}", f"{use['perplexity']:.1f}", f"{use['num_ids']:,}"] for name, use in rows]
    return ["## Codebook", codebook["what"].capitalize() + ".", _table(["level", "used", "perplexity", "ids"], cells)]


def _distance_cells(values: Mapping[str, Any]) -> list[str]:
    numbers = [f"{values['frechet_distance']:.3f}", f"{values['kernel_distance']:.5f}"]
    return [values["of"], values["against"], *numbers, f"{values['precision']:.3f}", f"{values['recall']:.3f}"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
