from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

DECODER = {"decoder_channels": 8, "decoder_multipliers": [1], "decoder_stem": 2}
PROGRAM = Path(__file__).resolve().parents[2] / "eval" / "study_mixers.py"


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    return runpy.run_path(str(PROGRAM), run_name="study_mixers")


def small(program: dict[str, Any], out: Path, **options: Any) -> Any:
    sizes = {"num_train": 16, "num_validation": 8, "num_test": 8, "steps": 2, "batch_size": 4, "seeds": (0,)}
    return program["Settings"](
        **{"data": "digits", "size": 32, "pad": 0, "out": str(out), "arms": ("none", "window"), **sizes, **options}
    )


def test_the_study_runs_and_shuffling_hurts_mixers_alone(program: dict[str, Any], tmp_path: Path) -> None:
    program["main"](small(program, tmp_path, rates=(1e-3,), seeds=(0, 1), decoder=DECODER))
    kept = json.loads((tmp_path / "reconstruction" / "window" / "seed-1" / "model" / "config.json").read_text())
    assert (kept["decoder_channels"], kept["backbone"]) == (8, "mixer:window")
    # Without costs nobody can say which mixers pay.
    assert "pay" not in (tmp_path / "reconstruction.md").read_text()
    table = (tmp_path / "reconstruction.md").read_text()
    assert "| none |" in table
    assert "PSNR (dB), 3 of 3 levels" in table
    found = json.loads((tmp_path / "reconstruction" / "study.json").read_text())["values"]
    none, window = found["none"]["0"], found["window"]["0"]
    assert none["shuffled"] == none["psnr_3"]
    assert window["shuffled"] != window["psnr_3"]
    assert {"psnr_1", "psnr_2", "psnr_3", "codes_1", "codes_2", "codes_3", "rate"} <= set(none)
    assert none["mean"] == pytest.approx((none["psnr_1"] + none["psnr_2"] + none["psnr_3"]) / 3)
    program["main"](small(program, tmp_path, rates=(1e-3,), seeds=(0, 1), decoder=DECODER, part="cost"))
    program["main"](small(program, tmp_path, rates=(1e-3,), seeds=(0, 1), decoder=DECODER))
    assert "- window: " in (tmp_path / "reconstruction.md").read_text()


def test_rates_are_chosen_on_images_that_nothing_trains_on(program: dict[str, Any], tmp_path: Path) -> None:
    study = program["MixerStudy"](small(program, tmp_path, search_steps=1, rates=(1e-3, 2e-3)))
    assert (len(study.train), len(study.validation), len(study.test)) == (16, 8, 8)
    # With one image alone to be scored on, the rate is the one whose tokenizer rebuilds that image best.
    study.validation, study.test = study.validation[:1], study.test[:0]
    scores = {
        rate: program["_psnr"](model, program["_encode"](model, study.validation), study.validation)
        for rate in study.settings.rates
        for model in [study._trained("none", rate, 0, steps=1)]
    }
    assert study._rate("none") == max(scores, key=scores.__getitem__)
    # A finished run of seed 0 is not searched for again.
    result = tmp_path / "reconstruction" / "none" / "seed-0" / "result.json"
    result.parent.mkdir(parents=True)
    result.write_text(json.dumps({"metrics": {"rate": 0.25}}))
    assert program["MixerStudy"](small(program, tmp_path))._rate("none") == 0.25


def test_encoders_have_the_same_parameters(program: dict[str, Any], tmp_path: Path) -> None:
    encoder, decoder = program["ENCODER"], program["DECODER"]
    for arm in program["ARMS"]:
        model = program["create"]("pyramid-tiny-84", **decoder, **program["overrides"](arm, encoder, 75_000))
        count = sum(p.numel() for p in model.encoder.parameters() if p.requires_grad)
        assert [spec.grid for spec in model.specs] == [(4, 4), (8, 8), (16, 16)]
        assert abs(count / 75_000 - 1) < 0.03, (arm, count)
    for arm in program["NETWORKS"]:
        model = program["create"]("pyramid-tiny-84", image_size=64, **program["overrides"](arm, encoder, 75_000))
        count = sum(p.numel() for p in model.encoder.parameters())
        assert [spec.grid for spec in model.specs] == [(4, 4), (8, 8), (16, 16)]
        assert abs(count / 75_000 - 1) < 0.06, (arm, count)
    with pytest.raises(
        ValueError, match=r"parameters is 1000, expected a number that 'none' can have; it has \d+ with"
    ):
        program["overrides"]("none", encoder, 1000)
    with pytest.raises(
        ValueError, match=r"arms is \['window'\], expected 'none' first, then any of none, depthwise.*, timm-pvt"
    ):
        small(program, tmp_path, arms=("window",))


def test_costs(program: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = program["MixerStudy"](small(program, tmp_path, arms=("none", "window", "attention"))).cost()
    assert found["window"]["multiply_adds"] > found["none"]["multiply_adds"] > 1e5
    # On maps of 16 x 16, two blocks of 16 channels with products of all tokens, twice.
    assert found["attention"]["multiply_adds"] - found["window"]["multiply_adds"] > 2 * 2 * 256 * 256 * 16 / 2
    assert min(found["none"]["milliseconds_1"], found["none"]["milliseconds_64"]) > 0


def test_a_mixer_pays_that_gains_and_that_no_cheaper_one_beats(program: dict[str, Any]) -> None:
    noise = {0: 0.0, 1: 0.1, 2: -0.1}
    gains = {"none": 0.0, "depthwise": 1.0, "window": 0.5, "attention": 2.0, "linear": 0.05}
    values = {
        # What is common to a seed cancels; `linear` differs from seed to seed by more than it gains.
        arm: {seed: {"mean": 20 + gain + shift * (3 if arm == "linear" else 1)} for seed, shift in noise.items()}
        for arm, gain in gains.items()
    }
    times = {"none": 1.0, "depthwise": 2.0, "window": 3.0, "attention": 4.0, "linear": 1.5}
    costs = {arm: {"milliseconds_64": time} for arm, time in times.items()}
    result = program["StudyResult"](values, {}, {})
    assert program["verdicts"](result, costs) == {
        "depthwise": "pays",
        "window": "does not pay: depthwise better in less time",
        "attention": "pays",
        "linear": "does not pay: no gain over none is shown",
    }
    with pytest.raises(ValueError, match="costs have no linear, expected all arms: run --part cost with them"):
        program["verdicts"](result, {arm: cost for arm, cost in costs.items() if arm != "linear"})
