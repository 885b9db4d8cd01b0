"""The video quickstart's report as Markdown: every number beside what it was measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hiergen.benchmarks.psa import describe_pay
from hiergen.quickstart.report import table, training_sections
from hiergen.quickstart.settings import MOVING


def video_markdown(report: Mapping[str, Any]) -> str:
    """Return the report of `run_video_quickstart` as a page to read."""
    settings, extractor, tokenizer = report["settings"], report["extractor"], report["tokenizer"]
    before, after = tokenizer["numbers_per_clip"]
    thing = MOVING[settings["data"]].thing
    sections = [
        "# hiergen quickstart video",
        f"{report['what'][:1].upper()}{report['what'][1:]}. Seed {settings['seed']}; {settings['num_clips']:,} training clips, "
        f"{report['samples_seen']:,} training samples for the generator; {report['seconds']['total']} s in all on "
        f"{report['threads']} threads.",
        "![contact sheet](contact_sheet.png)",
        "`samples.mp4` and `samples.gif` show the same clips moving: real, generated with dense attention, generated with sparse "
        "attention from the same noise; `attention.gif` has the last two side by side.",
        f"## Do the clips show the {thing} that was asked for, and look like real ones?",
        f"Judge: {report['judge']}; a clip shows what most of its frames show. Fréchet distances are to the "
        f"{settings['num_clips']:,} real train clips, on `{extractor['name']}`: {extractor['description']}. On held-out clips it "
        f"tells {extractor['class_accuracy']:.1%} of the classes and {extractor['direction_accuracy']:.1%} of the directions.",
        _sets_table(report["sets"]),
        "Flicker is the mean change of a pixel from frame to frame, of 1; real motion flickers too. Distances of few clips are "
        "biased upward: compare sets of equal count.",
        "## Sparse attention against dense",
        "The same weights, the same noise; the generator was trained with dense attention. Density is the share of the dense "
        "products that is computed. PSNR, SSIM and flicker error compare each frame, or change between frames, with the dense clip's.",
        _sparse_table(report["sparse_against_dense"]),
        f"{_verdict(report['sparse_against_dense'])} {report['default_attention']}",
        "## Tokenizer",
        f"{before:,} numbers of a clip become {after:,}; on held-out clips {tokenizer['psnr_db']:.2f} dB PSNR, SSIM "
        f"{tokenizer['ssim']:.4f}. It is linear (principal components of patches) and fitted in closed form.",
        *training_sections(report),
    ]
    return "\n\n".join(sections) + "\n"


def _sets_table(sets: Mapping[str, Mapping[str, Any]]) -> str:
    head = ["clips", "count", "judge agrees, clips", "judge agrees, frames", "Fréchet", "flicker"]
    rows = [
        [
            name,
            str(entry["count"]),
            f"{entry['clips_agree']:.1%}",
            f"{entry['frames_agree']:.1%}",
            f"{entry['frechet']['distance']:.2f}",
            f"{entry['flicker']:.4f}",
        ]
        for name, entry in sets.items()
    ]
    return table(head, rows)


def _sparse_table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["attention", "density", "PSNR (dB)", "SSIM", "flicker error", "CPU seconds per clip"]
    cells = [
        [
            row["name"],
            f"{row['density']:.3f}",
            _number(row, "psnr_db", 2),
            _number(row, "ssim", 3),
            _number(row, "flicker_error", 4),
            f"{row['cpu_seconds_per_clip']:.2f}",
        ]
        for row in rows
    ]
    return table(head, cells)


def _verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    dense, *sparse = (row["cpu_seconds_per_clip"] for row in rows)
    return describe_pay(dense, sparse)


def _number(row: Mapping[str, Any], name: str, digits: int) -> str:
    return f"{row[name]:.{digits}f}" if name in row else ""
