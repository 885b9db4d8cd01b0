"""The shape quickstart's report as Markdown: every number beside what it was measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hiergen.quickstart.report import table, training_sections
from hiergen.quickstart.shapes.scores import SPECK


def shape_markdown(report: Mapping[str, Any]) -> str:
    """Return the report of `run_shapes_quickstart` as a page to read."""
    settings, made = report["settings"], report["generation"]
    sections = [
        "# hiergen quickstart shapes",
        f"{report['what'].capitalize()}. Seed {settings['seed']}; {settings['num_shapes']} training shapes; "
        f"{settings['tokenizer_samples']:,} training samples for the tokenizer, {settings['generator_samples']:,} for the "
        f"generator; {report['seconds']['total']} s in all on {report['threads']} threads.",
        "![contact sheet](contact_sheet.png)",
        "## How well are held-out shapes rebuilt?",
        f"Means over {report['reconstruction']['shapes']}. Protocol: {report['reconstruction']['levels'][0]['protocol']}.",
        _reconstruction_table(report["reconstruction"]["levels"]),
        "## Are generated shapes like real ones?",
        f"Protocol: {made['protocol']}. 1-NNA: one half is best, 1 means that the two sets can be told apart. "
        f"{made['without_surface']} of the {settings['num_generated']} generated shapes had no surface.",
        _set_table(made["sets"]),
        "## Are they of the class that was asked for?",
        f"Judge: {made['judge']}.",
        table(
            ["shapes", "judge agrees"],
            [
                ["generated", f"{made['class_agreement']:.1%}"],
                ["real held-out", f"{made['class_agreement_real']:.1%}"],
            ],
        ),
        f"{made['whole']} of the {settings['num_generated']} generated shapes are of as many pieces as most shapes of their class: no part "
        f"is broken off, and nothing hangs in the air. Without counting detached pieces of less than {SPECK:.1%} of the volume it is "
        f"{made['whole_but_for_specks']}.",
        "## Are shapes generated from one view the shapes that it shows?",
        f"One clay render of each of the {settings['num_test']} held-out shapes; scores as for the reconstructions.",
        _reconstruction_table([{"tokens": "from a view", **report["from_views"]}]),
        "## Do rendered views of the sets look alike?",
        f"Fréchet distance by torch-fidelity on {report['rendered_on']}.",
        table(
            ["", "shapes", "views of each", "Fréchet distance to held-out shapes"],
            [
                [entry["of"], str(entry["count"]), str(entry["views"]), _number(entry["frechet_distance"], 3)]
                for entry in report["rendered"]
            ],
        ),
        *training_sections(report),
    ]
    return "\n\n".join(sections) + "\n"


def _reconstruction_table(levels: Sequence[Mapping[str, Any]]) -> str:
    thresholds = list(levels[0]["f_scores"])
    head = ["tokens", "IoU", "Chamfer", *[f"F@{value}" for value in thresholds], "normals", "without surface"]
    rows = [
        [
            str(level["tokens"]),
            f"{level['iou']:.3f}",
            _number(level["chamfer"], 4),
            *[f"{level['f_scores'][value]:.3f}" for value in thresholds],
            _number(level["normal_consistency"], 3),
            str(level["without_surface"]),
        ]
        for level in levels
    ]
    return table(head, rows)


def _set_table(sets: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"{entry['count']} {entry['of']}",
            entry["against"],
            f"{entry['coverage']:.3f}",
            f"{entry['matching_distance']:.4f}",
            f"{entry['nearest_neighbor_accuracy']:.3f}",
        ]
        for entry in sets
    ]
    return table(["", "against", "coverage", "MMD", "1-NNA"], rows)


def _number(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"
