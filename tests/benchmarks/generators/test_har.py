from __future__ import annotations

import json

import pytest
import torch

from hiergen.benchmarks.generators.har import run
from hiergen.benchmarks.measuring.plain.har import PlainSampler
from hiergen.benchmarks.settings import HARSettings
from hiergen.generators.level_ar.model import LevelAR
from hiergen.generators.level_ar.presets import doubling_specs
from hiergen.generators.level_ar.settings import LevelARSettings
from hiergen.pyramid import specs_to_json
from hiergen.registry import create


def test_run_measures_every_sampler_and_their_ids_agree(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(HARSettings(preset="har-tiny", depth=1, batches=(1, 2), repeats=2, device="cpu"))
    rows = json.loads(json.dumps(result))["rows"]
    names = ["cached", "uncached", "plain", "rebuilding"]
    assert [(row["batch"], row["sampler"]) for row in rows] == [(batch, name) for batch in (1, 2) for name in names]
    for row in rows:
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"]
        assert row["images_per_s"] == pytest.approx(row["batch"] / row["median_s"])
        assert row["equal_ids"] == 1
    plain = rows[2]
    assert plain["times_faster_than_plain"] == 1
    assert rows[0]["times_faster_than_plain"] == pytest.approx(plain["median_s"] / rows[0]["median_s"])
    printed = capsys.readouterr().out
    assert "har-tiny" in printed
    assert "cached" in printed


@pytest.mark.parametrize("num_ar_tokens", [1, 2, 4])
def test_plain_sampler_draws_the_ids_of_generate(num_ar_tokens: int) -> None:
    specs = specs_to_json(doubling_specs(16, dim=8, vocab_size=29))
    model = LevelAR(level_specs=specs, num_classes=4, dim=24, depth=2, num_heads=2, num_ar_tokens=num_ar_tokens).eval()
    torch.nn.init.normal_(model.head.weight, std=0.2)
    labels = torch.tensor([0, 3])
    for settings in (
        LevelARSettings.published(),
        LevelARSettings(top_k=5),
        LevelARSettings(guidance_scale=2.0, greedy=True),
    ):
        ids = model.generate(labels, settings, rng=torch.Generator().manual_seed(8)).concat()
        for rebuild_tables in (False, True):
            plain = PlainSampler(model, rebuild_tables=rebuild_tables)
            assert torch.equal(plain.generate(labels, settings, rng=torch.Generator().manual_seed(8)), ids)


def test_errors() -> None:
    with pytest.raises(ValueError, match="repeats is 0, expected at least 1"):
        HARSettings(repeats=0)
    with pytest.raises(ValueError, match=r"batches is \(1, 0\), expected a list"):
        HARSettings(batches=(1, 0))
    with pytest.raises(ValueError, match="preset 'restok-l-128' is a ResTok, expected a LevelAR"):
        run(HARSettings(preset="restok-l-128"))
    with pytest.raises(ValueError, match="layout is 'token', the plain sampler knows 'level' only"):
        PlainSampler(_token_by_token(), rebuild_tables=False)


def _token_by_token() -> LevelAR:
    return create("har-tiny", layout="token", depth=1)
