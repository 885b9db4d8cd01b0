"""The text quickstart's report as Markdown: every number beside what it was measured on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hiergen.quickstart.report import table, training_sections
from hiergen.telling import counted


def text_markdown(report: Mapping[str, Any]) -> str:
    """Return the report of `run_text_quickstart` as a page to read."""
    settings, data = report["settings"], report["data"]
    sections = [
        "# hiergen quickstart text",
        f"{report['what']}. Seed {settings['seed']}; {data['train_bytes']:,} bytes to train on, "
        f"{data['test_bytes']:,} bytes of {data['test_topics']} held-out topics; {report['seconds']['total']} s in all on "
        f"{counted(report['threads'], 'thread')}.",
        "## Bits per byte on held-out topics",
        _rows_table(report["rows"], report["parameters"]),
        "Lower is better. Every model was trained with as many operations as the first: multiply-adds of matrix products, convolutions "
        "and attention, counted before training. H-Net then puts a boundary at about every second byte; later it has fewer chunks and "
        "computes less than it was given. Rows are cut at the same places, and no text sees another.",
        "One seed and minutes of training: a difference of a few hundredths says nothing. Whatever leads here leads after so few bytes.",
        "## Where chunks begin",
        "![chunks](chunks.png)",
        *_words(report["words"]),
        *(f"![chunks of {name} as it learned](chunks_{name}.png)" for name in report["words"]),
        "## Samples",
        f"Temperature {report['sampling']['temperature']}, {report['sampling']['max_new_bytes']} bytes, not selected.",
    ]
    for name, texts in report["samples"].items():
        sections.append(f"### {name}")
        for prompt, text in zip(report["prompts"], texts, strict=True):
            # Bytes may be anything, and a page is text.
            shown = "".join(c if c.isprintable() or c == "\n" else "·" for c in prompt + text)
            sections.append(f"~~~~~~text\n{shown}\n~~~~~~")
    return "\n\n".join([*sections, *training_sections(report)]) + "\n"


def _rows_table(rows: Mapping[str, Mapping[str, Any]], parameters: Mapping[str, int]) -> str:
    head = [
        "model",
        "parameters",
        "bits per byte",
        "bytes seen",
        "multiply-adds per row: before, after training",
        "bytes per chunk",
    ]
    cells = [
        [
            name,
            f"{parameters[name]:,}",
            f"{row['bits_per_byte']:.3f}",
            f"{row['train_bytes']:,}",
            f"{row['operations_at_start'] / 1e6:,.0f} M, {row['operations'] / 1e6:,.0f} M",
            ", ".join(f"{value:.1f}" for value in row["log"].values()) or "-",
        ]
        for name, row in rows.items()
    ]
    return table(head, cells)


def _words(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [
        f"{name}: {shares['chunks']:.1%} of the chunks begin within one byte of the beginning of a word; by chance it would be "
        f"{shares['bytes']:.1%}."
        for name, shares in found.items()
    ]
