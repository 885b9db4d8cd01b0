"""The report of an evaluation: JSON for programs, Markdown with pictures for people, values and statistics for later comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hiergen.evaluation.comparison import distance_name, intervals
from hiergen.evaluation.features.distances import extrapolated, interval_rule, shown_name
from hiergen.evaluation.features.references import Reference, write_npz
from hiergen.evaluation.images.rate_distortion import Row, draw_rates, with_intervals
from hiergen.figures import save_image_grid
from hiergen.files import atomic_path, write_json, write_text
from hiergen.pipelines.labels import list_names
from hiergen.telling import counted

TITLES = {"rfid": "Reconstruction", "gfid": "Generation", "shapes": "Shapes", "video": "Video"}
UNITS = {"psnr": "dB"}


def publish(
    folder: Path,
    report: dict[str, Any],
    *,
    values: dict[str, Tensor] | None = None,
    reference: Reference | None = None,
    pictures: Mapping[str, Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Write a report with everything that belongs to it, and return it with its confidence intervals.

    Args:
        folder: Folder that gets report.json, report.md, pictures, values.safetensors and reference.npz.
        report: Entries of the report, as JSON values.
        values: What intervals are computed from, one row per item.
        reference: What the set was compared with, kept in ADM's file format.
        pictures: Rows of uint8 images by caption.
        device: Device on which intervals are computed.
    """
    if values:
        with atomic_path(folder / "values.safetensors") as temporary:
            save_file({name: value.contiguous() for name, value in values.items()}, temporary)
        settings = report["settings"]["distances"]
        report["intervals_95"] = report.get("intervals_95", {}) if settings["resamples"] else {}
        if settings["resamples"]:
            draws = {"resamples": settings["resamples"], "seed": report["seed"]}
            report["intervals_95"] |= intervals(values, reference, distance_name(report), device=device, **draws)
    if reference is not None:
        write_npz(folder / "reference.npz", reference)
    report = _finite(report)
    _draw(folder, report, pictures or {})
    write_json(folder / "report.json", report)
    write_text(folder / "report.md", render(report, has_pictures=bool(pictures)))
    return report


def render(report: Mapping[str, Any], *, has_pictures: bool = False) -> str:
    """Return a report as Markdown; pictures lie beside it."""
    lines = [f"# {TITLES.get(report['kind'], report['kind'])}", "", f"{report['what']}.", ""]
    for warning in report.get("warnings", []):
        lines += [f"> **Note**: {warning}.", ""]
    half, extractor = report.get("intervals_95", {}), report.get("extractor", {}).get("name")
    rows = [
        [
            shown_name(name, extractor),
            number(value) + (f" {UNITS[name]}" if name in UNITS else ""),
            f"± {number(half[name])}" if half.get(name) is not None else "",
        ]
        for name, value in report["metrics"].items()
    ]
    lines += ["", *table(["metric", "value", "95 % interval"], rows), ""]
    if half:
        resamples = report["settings"]["distances"]["resamples"]
        others = [f"of {shown_name(name, extractor)}: {rule}" for name in half if (rule := interval_rule(name))]
        rules = [f"Intervals: 1.96 standard deviations of {resamples} bootstrap draws", *others]
        lines += [f"{'; '.join(rules)}.", ""]
    if "agreement" in report:
        lines += [f"{report['agreement']}.", ""]
    if has_pictures:
        lines += ["![examples, not selected](examples.png)", ""]
    lines += _rate_distortion(_rates(report), extractor)
    lines += _bias(report.get("bias", []))
    lines += _tokens(report.get("tokens", {}))
    lines += ["## How it was measured", ""]
    about = {
        **report.get("protocol", {}),
        "extractor": report.get("extractor", {}).get("description"),
        "reference data": report.get("reference", {}).get("source", report.get("reference", {}).get("kind")),
        "reference fingerprint": report.get("reference", {}).get(
            "fingerprint", report.get("reference", {}).get("data")
        ),
        "classes": list_names(dict(enumerate(report["classes"]))).replace("|", "\\|") if "classes" in report else None,
        "counts": ", ".join(f"{name} {count:,}" for name, count in report.get("counts", {}).items() if count),
        "seed": report.get("seed"),
        **_flat(report["environment"]),
        "wall time": f"{report['wall_time_s']} s (of the last session, if it was continued)",
    }
    return "\n".join([*lines, *table(["", ""], [[k, str(v)] for k, v in about.items() if v is not None]), ""])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [_line(header), _line(["---"] * len(header)), *map(_line, rows)]


def _rate_distortion(rows: Sequence[Row], extractor: str | None) -> list[str]:
    if not rows:
        return []
    names, size = list(rows[-1]["metrics"]), "bits" if rows[-1]["bits"] is not None else "numbers"
    body = []
    for row in rows:
        half = row.get("intervals_95", {})
        cells = [number(row["metrics"][n]) + _spread(half.get(n)) if n in row["metrics"] else "" for n in names]
        body.append([str(row["count"]), f"{row['tokens']:,}", _size(row[size]), *cells])
    header = [rows[0]["unit"], "tokens", size, *(shown_name(name, extractor) for name in names)]
    return ["## Rate and distortion", "", *table(header, body), "", "![rate and distortion](rate_distortion.png)", ""]


def _size(value: int | float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _spread(half_width: float | None) -> str:
    return f" ± {half_width:.2g}" if half_width else ""


def _bias(curve: Sequence[Mapping[str, Any]]) -> list[str]:
    if len(curve) < 2:
        return []
    rows = [[f"{point['count']:,}", number(point["distance"])] for point in curve]
    limit = extrapolated(curve)
    is_known = limit is not None and limit >= 0
    told = number(limit) if is_known else "below zero: these are too few for a straight line"
    rows.append(["infinitely many (straight line in 1 / count)", told])
    return ["## Fréchet distance by number of images", "", *table(["images", "distance"], rows), ""]


def _tokens(tokens: Mapping[str, Any]) -> list[str]:
    if not tokens:
        return []
    if tokens["kind"] == "discrete":
        uses = {"all": tokens["all_levels"], **{str(k): use for k, use in enumerate(tokens["by_level"])}}
        rows = [
            [
                name,
                f"{use['used']:.1%}",
                f"{use['entropy_bits']:.2f}",
                f"{use['perplexity']:.1f}",
                f"{use['num_ids']:,}",
            ]
            for name, use in uses.items()
        ]
        return ["## Codebook", "", *table(["level", "used", "entropy (bits)", "perplexity", "ids"], rows), ""]
    channels = [
        [str(k), *(f"{channel[name]:.3f}" for name in ("mean", "std", "kurtosis"))]
        for k, channel in enumerate(tokens["by_channel"])
    ]
    measures = [
        f"- {name.replace('_', ' ')}: {number(tokens[name])}"
        for name in ("neighbor_spread", "spatial_autocorrelation", "interpolation_detour")
        if name in tokens
    ]
    text = f"Tokens of {counted(tokens['images'], 'sample')}."
    return ["## Latents", "", text, "", *measures, "", *table(["channel", "mean", "std", "kurtosis"], channels), ""]


def _draw(folder: Path, report: Mapping[str, Any], pictures: Mapping[str, Tensor]) -> None:
    if pictures:
        rows = [images.float() / 127.5 - 1 for images in pictures.values()]
        side = rows[0].shape[-1]
        save_image_grid(folder / "examples.png", rows, row_labels=list(pictures), scale=max(0.55, min(1.6, side / 100)))
    rates = _rates(report)
    if rates:
        draw_rates(folder / "rate_distortion.png", {"": rates})


def _rates(report: Mapping[str, Any]) -> list[Row]:
    """Return the rows of the rate-distortion page; none where there is one rate, which the protocol names."""
    rows = with_intervals(report)
    return rows if len(rows) > 1 else []


def _flat(environment: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
        for name, value in environment.items()
    }


def _finite(value: Any) -> Any:
    """Return JSON values with infinity and NaN (the PSNR of equal images) as None, which JSON can hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float | None) -> str:
    """Return a value with four digits; None stands for one that is not finite, such as the PSNR of equal images."""
    return "not finite" if value is None else f"{value:.4g}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
