"""Bytes per second of generation, a block model beside a flat one, by batch and by length of the text so far.

    run_speed_study(SpeedStudySettings(out="runs/sequences"))

Both go by turns in one process of one thread, and its processor time is taken, so that a busy machine slows neither. Weights are random:
speed does not depend on them.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiergen.checked import Checked, Count
from hiergen.files import check_writable, write_json, write_text
from hiergen.generators.sequences.base import SequenceModel
from hiergen.nn.running.modes import evaluating
from hiergen.registry import create

#: Pairs of a flat transformer and a block transformer, by name: of the study's sizes, and of equal parameters where weights count.
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "small": (
        {"layout": ["T4"], "dims": [64], "num_heads": [4]},
        {"dim": 128, "depth": 4, "token_dim": 64, "token_depth": 3},
    ),
    "wide": (
        {"layout": ["T6"], "dims": [192], "num_heads": [6]},
        {"dim": 192, "depth": 3, "num_heads": 6, "token_dim": 192, "token_depth": 3, "token_heads": 6},
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedStudySettings(Checked):
    """What is timed.

    Attributes:
        out: Folder of the results, `speed.json` and `speed.md`.
        pairs: Names of the pairs of models.
        batches: Numbers of texts that grow together.
        contexts: Bytes of each text before the timed ones, multiples of 4.
        steps: Number of bytes per turn, a multiple of 4.
        turns: Number of turns of each model.
    """

    out: str = "runs/sequences"
    pairs: tuple[str, ...] = tuple(PAIRS)
    batches: tuple[int, ...] = (1, 4, 16, 64)
    contexts: tuple[int, ...] = (64, 512)
    steps: Count = 8
    turns: Count = 3


def run_speed_study(settings: SpeedStudySettings) -> None:
    """Time all pairs, write `speed.json` after each, and the table at the end."""
    torch.set_num_threads(1)
    out = check_writable(settings.out)
    rows: list[dict[str, Any]] = []
    for name in settings.pairs:
        flat, block = (
            create(preset, **sizes)
            for preset, sizes in zip(("flat-transformer-tiny", "block-tiny"), PAIRS[name], strict=True)
        )
        parameters = [sum(p.numel() for p in model.parameters()) for model in (flat, block)]
        for context in settings.contexts:
            for batch in settings.batches:
                timed = time_pair(flat, block, batch=batch, context=context, steps=settings.steps, turns=settings.turns)
                rows.append({"pair": name, "parameters": parameters, "context": context, "batch": batch, **timed})
                write_json(out / "speed.json", {"settings": dataclasses.asdict(settings), "rows": rows})
    write_text(Path(out) / "speed.md", speed_table(rows))
    print(speed_table(rows))


def time_pair(
    first: SequenceModel, second: SequenceModel, *, batch: int, context: int, steps: int, turns: int
) -> dict[str, float]:
    """Return the bytes per second of processor time of two models over all texts, and the second's over the first's: medians, and the turns' range.

    Args:
        first: A model of bytes.
        second: Another one.
        batch: Number of texts.
        context: Bytes of each before the timed ones.
        steps: Number of bytes per turn.
        turns: Number of turns of each; one more, not counted, comes first.
    """
    ids = torch.randint(256, (batch, context), generator=torch.Generator().manual_seed(0))
    with evaluating(first), evaluating(second):
        steppers = [_stepper(model, ids, steps * (turns + 1)) for model in (first, second)]
        seconds: list[list[float]] = [[], []]
        for _ in range(turns + 1):
            for index, step in enumerate(steppers):
                started = time.process_time()
                for _ in range(steps):
                    step()
                seconds[index].append(time.process_time() - started)
    flat, block = (found[1:] for found in seconds)
    ratios = [mine / other for mine, other in zip(flat, block, strict=True)]
    return {
        "first_bytes_per_second": batch * steps / statistics.median(flat),
        "second_bytes_per_second": batch * steps / statistics.median(block),
        "ratio": statistics.median(ratios),
        "least_ratio": min(ratios),
        "greatest_ratio": max(ratios),
    }


def _stepper(model: SequenceModel, ids: Tensor, num_new: int) -> Callable[[], object]:
    """Return what lets every text grow by its most probable byte."""
    cache = model.start_cache(len(ids), ids.shape[1] + num_new)
    logits = model.prefill(ids, None, cache)

    def step() -> None:
        nonlocal logits
        logits = model.step(logits.argmax(dim=1), cache)

    return step


def speed_table(rows: list[dict[str, Any]]) -> str:
    """Return Markdown."""
    lines = [
        "| models | bytes before | batch | flat, bytes/s | block, bytes/s | block over flat (range of turns) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        flat, block = (f"{count / 1e6:.1f} M" for count in row["parameters"])
        lines.append(
            f"| {row['pair']}: {flat} against {block} | {row['context']:,} | {row['batch']} | "
            f"{row['first_bytes_per_second']:,.0f} | {row['second_bytes_per_second']:,.0f} | "
            f"{row['ratio']:.2f} ({row['least_ratio']:.2f} to {row['greatest_ratio']:.2f}) |"
        )
    return "\n".join(lines) + "\n"
