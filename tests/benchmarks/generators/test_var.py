from __future__ import annotations

import json

import pytest
import torch

from hiergen.benchmarks.generators.var import run
from hiergen.benchmarks.measuring.plain.var import PlainSampler
from hiergen.benchmarks.settings import VARSettings
from hiergen.generators.next_scale.settings import NextScaleSettings
from hiergen.registry import create


def test_run_measures_every_sampler_and_their_ids_agree(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(VARSettings(preset="var-tiny", depth=1, batches=(1, 2), repeats=1, device="cpu"))
    rows = json.loads(json.dumps(result))["rows"]
    names = ["cached", "uncached", "plain"]
    assert [(row["batch"], row["sampler"]) for row in rows] == [(batch, name) for batch in (1, 2) for name in names]
    for row in rows:
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"]
        assert row["equal_ids"] == 1
    assert rows[2]["times_faster_than_plain"] == 1
    assert rows[0]["times_faster_than_plain"] == pytest.approx(rows[2]["median_s"] / rows[0]["median_s"])
    assert "var-tiny" in capsys.readouterr().out


@pytest.mark.parametrize("config", [{}, {"shares_modulation": True, "use_qk_norm": False}])
def test_the_plain_sampler_draws_the_ids_of_generate(config: dict[str, bool]) -> None:
    model = create("var-tiny", dim=24, depth=2, num_heads=3, gate_init=1.0, **config).eval()
    torch.manual_seed(0)
    for parameter in (model.head.weight, model.quantizer.codebook):
        torch.nn.init.normal_(parameter)
    labels, plain = torch.tensor([0, 3]), PlainSampler(model)
    for settings in (NextScaleSettings.published(), NextScaleSettings(top_k=5), NextScaleSettings(guidance_scale=4.0)):
        ids = model.generate(labels, settings, rng=torch.Generator().manual_seed(8)).concat()
        assert torch.equal(plain.generate(labels, settings, rng=torch.Generator().manual_seed(8)), ids)


def test_errors() -> None:
    with pytest.raises(ValueError, match="preset 'har-tiny' is a LevelAR, expected a NextScaleAR"):
        run(VARSettings(preset="har-tiny"))
