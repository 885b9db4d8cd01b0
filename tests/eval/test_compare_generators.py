"""The program that compares generators: its samplers take as many passes as its table says, and its tables hold what was measured."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from hiergen.evaluation.study import StudyResult
from hiergen.levels import specs_to_json, square_specs
from hiergen.registry import create

PROGRAM = runpy.run_path(
    str(Path(__file__).resolve().parents[2] / "eval" / "compare_generators.py"), run_name="compare_generators"
)
METHODS = PROGRAM["METHODS"]


@pytest.mark.parametrize("name", METHODS)
def test_a_sampler_takes_as_many_passes_as_the_table_says(name) -> None:
    method = METHODS[name]
    tokenizer, changes = PROGRAM["TOKENIZERS"][method.tokenizer]
    specs = specs_to_json(create(tokenizer, **changes).specs)
    generator = create(method.preset, **{**method.overrides, "level_specs": specs}).eval()
    for steps, drawn in method.drawn.items():
        settings, seen = generator.make_settings(guidance_schedule="constant", **drawn), []
        generator.generate(torch.tensor([3]), settings, callback=lambda index, *_, seen=seen, **__: seen.append(index))
        assert len(seen) == steps


def test_no_map_is_finer_than_the_others() -> None:
    for preset, changes in PROGRAM["TOKENIZERS"].values():
        specs = create(preset, **changes).specs
        assert specs[-1].grid in (None, (4, 4))
        assert sum(spec.num_tokens for spec in specs) in (16, 30)
    assert sum(spec.num_tokens for spec in square_specs((1, 2, 3, 4), dim=8, vocab_size=512)) == 30


def test_tables_hold_means_over_seeds_and_ratios_of_time() -> None:
    def measured(name: str, offset: float) -> dict[str, float]:
        found = {"parameters": 1000.0, "thousands": 2.0, "processor_seconds": 30.0}
        for steps in METHODS[name].drawn:
            for scale in (1.0, 1.5):
                found |= {
                    f"frechet_{steps}_{scale}": float(steps + offset),
                    f"agreement_{steps}_{scale}": 0.5,
                    f"recall_{steps}_{scale}": 0.25,
                }
        return found

    values = {name: {seed: measured(name, seed) for seed in (0, 1, 2)} for name in METHODS}
    result = StudyResult(values, {}, {})
    seconds = {f"{name}, {steps}": 0.1 * steps for name, method in METHODS.items() for steps in method.drawn}
    rows = PROGRAM["generation_table"](result, seconds, "own").splitlines()
    assert len(rows) == 2 + len(seconds)
    assert (
        "| RAR | 16 | 2.67 | 17.00 ± 2.48 | 17.00 ± 2.48 | 50.0 ± 0.0 | 50.0 ± 0.0 | 0.25 ± 0.00 | 0.25 ± 0.00 |"
        in rows
    )
    assert "| MAR | 1,000 | 2.0 | 30 ± 0 |" in PROGRAM["training_table"](result)
