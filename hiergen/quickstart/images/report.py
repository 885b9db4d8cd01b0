"""The quickstart's report as Markdown: every number beside what it was measured on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hiergen.quickstart.report import table, training_sections
from hiergen.quickstart.settings import PICTURES

#: Distances of sets: the entry of the report that holds each, and its digits.
DISTANCES = {
    "Fréchet": ("frechet_distance", 3),
    "kernel": ("kernel_distance", 5),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
}


def markdown_report(report: Mapping[str, Any]) -> str:
    """Return the report of `run_quickstart` as a page to read."""
    rebuilt, made, judge = report["reconstruction"], report["generation"], report["classifier"]
    near = report["nearest_train_image"]
    sections = [
        "# hiergen quickstart",
        f"{report['what'].capitalize()}. Seed {report['settings']['seed']}, {_samples_seen(report['samples_seen'])}, "
        f"{report['seconds']['total']} s in all.",
        "![samples](samples.png)",
        f"## Does it draw the {PICTURES[report['settings']['data']].thing} that was asked for?",
        f"Judge: {judge['what']}.",
        table(
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
        table(
            ["", "of", "against", *(f"{name} ({report['extractor']['name']} features)" for name in DISTANCES)],
            [
                ["rFD", *_distance_cells(rebuilt["rfid"])],
                ["gFD", *_distance_cells(made["gfid"])],
                ["yardstick", *_distance_cells(made["real_test_against_train"])],
            ],
        ),
        *([f"{made['gfid']['left_out']}."] if "left_out" in made["gfid"] else []),
        *_prefix_section(rebuilt),
        "![reconstruction](reconstruction.png)",
        *_codebook_section(report["codebook"]),
        *_latents_section(report.get("latents")),
        "## Are the samples copies?",
        f"{near['what'].capitalize()}.",
        table(
            ["images", "minimum", "5th percentile", "median"],
            [
                ["generated", *(f"{near['generated'][k]:.3f}" for k in ("min", "p5", "median"))],
                ["real test images", *(f"{near['real_test'][k]:.3f}" for k in ("min", "p5", "median"))],
            ],
        ),
        *training_sections(report),
    ]
    return "\n\n".join(sections) + "\n"


def _samples_seen(samples: Mapping[str, int]) -> str:
    if len(set(samples.values())) == 1:
        return f"{samples['tokenizer']:,} training samples for each model"
    return f"{samples['tokenizer']:,} training samples for the tokenizer and {samples['generator']:,} for the generator"


def _prefix_section(rebuilt: Mapping[str, Any]) -> list[str]:
    unit = "levels" if "psnr_by_levels" in rebuilt else "scales"
    explained = (
        ""
        if unit == "levels"
        else " The coarser scales are the decoder's, which derives them from the one level of tokens."
    )
    rows = [[str(r[unit]), str(r["tokens"]), f"{r['psnr_db']:.2f}"] for r in rebuilt[f"psnr_by_{unit}"]]
    return [
        f"## Reconstruction, {unit.removesuffix('s')} by {unit.removesuffix('s')}",
        f"PSNR on {rebuilt['images']}.{explained}",
        table([unit, "tokens", "PSNR (dB)"], rows),
    ]


def _codebook_section(codebook: Mapping[str, Any]) -> list[str]:
    if "by_level" not in codebook:
        return ["## Codebook", codebook["what"].capitalize() + "."]
    rows = [("all", codebook["all_levels"]), *((str(k), use) for k, use in enumerate(codebook["by_level"]))]
    cells = [[name, f"{use['used']:.1%}", f"{use['perplexity']:.1f}", f"{use['num_ids']:,}"] for name, use in rows]
    return ["## Codebook", codebook["what"].capitalize() + ".", table(["level", "used", "perplexity", "ids"], cells)]


def _latents_section(latents: Mapping[str, Any] | None) -> list[str]:
    if latents is None:
        return []
    rows = [
        [str(index), *(f"{channel[name]:.3f}" for name in ("mean", "std", "kurtosis"))]
        for index, channel in enumerate(latents["by_channel"])
    ]
    what = f"{latents['what'].capitalize()}. Kurtosis is 3 for a normal distribution."
    return ["## Latents", what, table(["channel", "mean", "deviation", "kurtosis"], rows)]


def _distance_cells(values: Mapping[str, Any]) -> list[str]:
    numbers = [f"{values[key]:.{count}f}" if key in values else "-" for key, count in DISTANCES.values()]
    return [values["of"], values["against"], *numbers]
