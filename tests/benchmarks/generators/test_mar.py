from __future__ import annotations

import json

import pytest
import torch

from hiergen.benchmarks.generators.mar import run
from hiergen.benchmarks.measuring.plain.mar import PlainSampler
from hiergen.benchmarks.settings import MARSettings
from hiergen.generators.masked.model import MaskedARSettings
from hiergen.registry import create


def test_run_measures_both_samplers_and_their_tokens_agree(capsys: pytest.CaptureFixture[str]) -> None:
    settings = MARSettings(preset="mar-tiny", batches=(1, 2), num_steps=4, head_steps=5, repeats=1, device="cpu")
    rows = json.loads(json.dumps(run(settings)))["rows"]
    assert [(row["batch"], row["sampler"]) for row in rows] == [
        (batch, name) for batch in (1, 2) for name in ("hiergen", "plain")
    ]
    for row in rows:
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"]
        assert row["images_per_s"] == pytest.approx(row["batch"] / row["median_s"])
        assert row["relative_difference"] < 1e-4
    assert rows[1]["times_faster_than_plain"] == 1
    assert rows[0]["times_faster_than_plain"] == pytest.approx(rows[1]["median_s"] / rows[0]["median_s"])
    printed = capsys.readouterr().out
    assert "mar-tiny" in printed
    assert "plain" in printed


def test_the_compiled_sampler_is_measured_too() -> None:
    settings = MARSettings(
        preset="mar-tiny", batches=(1,), num_steps=2, head_steps=3, repeats=1, device="cpu", compile=True
    )
    # Here only the benchmark is tested, so nothing is really compiled.
    with torch.compiler.set_stance("force_eager"):
        rows = run(settings)["rows"]
    assert [row["sampler"] for row in rows] == ["hiergen", "plain", "compiled"]
    assert rows[2]["relative_difference"] < 1e-4


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_plain_sampler_makes_the_tokens_of_generate(guidance_scale: float) -> None:
    model = create("mar-tiny").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    labels = torch.tensor([0, 3])
    settings = MaskedARSettings(num_steps=5, head_steps=4, guidance_scale=guidance_scale, temperature=0.9)
    ours = model.generate(labels, settings, rng=torch.Generator().manual_seed(8)).concat()
    plain = PlainSampler(model)
    theirs = plain.generate(labels, settings, rng=torch.Generator().manual_seed(8), shared_noise=True)
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4
    own_noise = plain.generate(labels, settings, rng=torch.Generator().manual_seed(8))
    assert own_noise.shape == theirs.shape
    assert not torch.allclose(own_noise, theirs)


def test_errors() -> None:
    with pytest.raises(ValueError, match="repeats is 0, expected at least 1"):
        MARSettings(repeats=0)
    with pytest.raises(ValueError, match=r"batches is \(\), expected at least one"):
        MARSettings(batches=())
    with pytest.raises(ValueError, match="preset 'har-tiny' is a LevelAR, expected a MaskedAR"):
        run(MARSettings(preset="har-tiny"))
    with pytest.raises(ValueError, match="the plain sampler knows class labels and order='random' only"):
        PlainSampler(create("mar-tiny", num_classes=None, feature_shapes=[[2, 3]]))
