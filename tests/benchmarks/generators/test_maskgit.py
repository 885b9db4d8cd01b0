from __future__ import annotations

import json

import pytest
import torch

from hiergen.benchmarks.generators.maskgit import run
from hiergen.benchmarks.measuring.plain.maskgit import PlainSampler
from hiergen.benchmarks.settings import MaskGITSettings
from hiergen.generators.masked.ids.settings import MaskedIdsSettings
from hiergen.registry import create


def test_run_measures_both_samplers_and_their_ids_agree(capsys: pytest.CaptureFixture[str]) -> None:
    settings = MaskGITSettings(preset="maskgit-tiny", depth=2, batches=(1, 2), num_steps=3, repeats=1, device="cpu")
    rows = json.loads(json.dumps(run(settings)))["rows"]
    names = ["hiergen", "plain"]
    assert [(row["batch"], row["sampler"]) for row in rows] == [(batch, name) for batch in (1, 2) for name in names]
    for row in rows:
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"]
        assert row["equal_ids"] == 1
    assert rows[1]["times_faster_than_plain"] == 1
    assert rows[0]["times_faster_than_plain"] == pytest.approx(rows[1]["median_s"] / rows[0]["median_s"])
    assert "maskgit-tiny, 3 steps" in capsys.readouterr().out


@pytest.mark.parametrize("blocks", ["post_norm", "skip"])
def test_the_plain_sampler_draws_the_ids_of_generate_and_as_many_numbers(blocks: str) -> None:
    model = create("maskgit-tiny", dim=24, depth=4, num_heads=3, blocks=blocks).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    labels, plain = torch.tensor([0, 3, 3]), PlainSampler(model)
    for settings in (
        MaskedIdsSettings.published(32),
        MaskedIdsSettings.published(128),
        MaskedIdsSettings(num_steps=4, temperature=2.0, guidance_schedule="muse", guidance_scale=0.0),
    ):
        ours = MaskedIdsSettings(**{**vars(settings), "official_draws": True})
        rngs = [torch.Generator().manual_seed(8) for _ in range(2)]
        ids = model.generate(labels, ours, rng=rngs[0]).concat()
        assert torch.equal(plain.generate(labels, settings, rng=rngs[1]), ids)
        assert torch.equal(rngs[0].get_state(), rngs[1].get_state())
        assert len(ids.unique()) > 4


def test_errors() -> None:
    with pytest.raises(ValueError, match="preset 'har-tiny' is a LevelAR, expected a MaskedIds"):
        run(MaskGITSettings(preset="har-tiny"))
