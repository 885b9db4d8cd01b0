from __future__ import annotations

import json

import pytest
import torch

from hiergen.benchmarks.generators.rar import run
from hiergen.benchmarks.measuring.plain.rar import PlainSampler
from hiergen.benchmarks.settings import RARSettings
from hiergen.generators.random_order.model import RandomOrderARSettings
from hiergen.registry import create


def test_run_measures_every_sampler_and_their_ids_agree(capsys: pytest.CaptureFixture[str]) -> None:
    settings = RARSettings(preset="rar-tiny", depth=1, batches=(1, 2), repeats=1, device="cpu", uncached=True)
    rows = json.loads(json.dumps(run(settings)))["rows"]
    names = ["cached", "plain", "uncached"]
    assert [(row["batch"], row["sampler"]) for row in rows] == [(batch, name) for batch in (1, 2) for name in names]
    for row in rows:
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"]
        assert row["equal_ids"] == 1
    assert rows[1]["times_faster_than_plain"] == 1
    assert rows[0]["times_faster_than_plain"] == pytest.approx(rows[1]["median_s"] / rows[0]["median_s"])
    assert "rar-tiny" in capsys.readouterr().out


def test_the_uncached_sampler_is_measured_when_it_is_asked_for() -> None:
    rows = run(RARSettings(preset="rar-tiny", depth=1, batches=(1,), repeats=1, device="cpu"))["rows"]
    assert [row["sampler"] for row in rows] == ["cached", "plain"]


def test_the_plain_sampler_draws_the_ids_of_generate_and_as_many_numbers() -> None:
    # More rows than are read, as the published tables have.
    model = create("rar-tiny", dim=24, depth=2, num_heads=3, num_position_rows=40, num_step_rows=30).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    labels, plain = torch.tensor([0, 3]), PlainSampler(model)
    for settings in (
        RandomOrderARSettings.published("b"),
        RandomOrderARSettings.published("xl"),
        RandomOrderARSettings(guidance_scale=3.0, top_k=5),
        RandomOrderARSettings(),
    ):
        ours = RandomOrderARSettings(**{**vars(settings), "official_draws": True})
        rngs = [torch.Generator().manual_seed(8) for _ in range(2)]
        ids = model.generate(labels, ours, rng=rngs[0]).concat()
        assert torch.equal(plain.generate(labels, settings, rng=rngs[1]), ids)
        assert torch.equal(rngs[0].get_state(), rngs[1].get_state())
        assert len(ids.unique()) > 4


def test_errors() -> None:
    with pytest.raises(ValueError, match="preset 'har-tiny' is a LevelAR, expected a RandomOrderAR"):
        run(RARSettings(preset="har-tiny"))
