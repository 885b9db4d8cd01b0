"""The PSA benchmarks on tiny inputs."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from hiergen.benchmarks import psa, psa_quality
from hiergen.benchmarks.measuring.attention_inputs import structured_heads
from hiergen.benchmarks.settings import PSAQualitySettings, PSASettings
from hiergen.kernels.pyramid_attention.backends import dense


def test_speed_runs_and_writes(tmp_path):
    settings = PSASettings(
        tokens=250,
        heads=2,
        dim=16,
        density=0.3,
        dtype="float32",
        device="cpu",
        query_block=16,
        key_block=16,
        repeats=1,
        output=tmp_path,
    )
    result = psa.run(settings)
    assert json.loads((tmp_path / "psa.json").read_text())["grid"] == result["grid"]
    for name in ("psa.png", "plan.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    entries = result["attention"]
    assert entries["dense, cuDNN"] == {"reason": "not for cpu"}
    assert entries["dense, flash"]["error"] < 1e-5
    assert entries["pyramid"]["error"] == entries["pyramid, all in"]["error"] < 0.5
    assert entries["pyramid"]["density"] == pytest.approx(0.3, abs=0.06)
    # The mask that pyramid attention is compared with never computes less.
    assert 0 <= entries["binary mask"]["density"] - entries["pyramid"]["density"] < 1 / 15
    assert set(result["preparation_ms"]) == {"importance", "assignment", "lists", "pyramid"}


def test_reports_say_whether_sparse_attention_pays():
    assert psa.describe_pay(2.0, [1.0, 3.0]).startswith("Sparse attention pays here: it took 0.50 times the seconds")
    assert "does not pay here: it took 1.50 to 2.00 times the seconds of dense" in psa.describe_pay(2.0, [4.0, 3.0])
    assert "it took 1.50 times" in psa.describe_pay(2.0, [3.0])


def test_what_is_the_default_is_said_with_the_reason(monkeypatch):
    monkeypatch.setattr(dense, "DENSE_FROM", ((256, 0.2, 0.0), (1024, 0.5, 0.3)))
    small, large = (psa.config_of_density(0.4, *blocks, "pyramid") for blocks in ((32, 16), (128, 64)))
    exact, sparse = psa.measure_pay(64, small, heads=1, repeats=1)
    assert min(exact, sparse) > 0
    said = psa.describe_default(1000, small)
    assert said == (
        "A clip is 1,000 tokens, so few that dense attention is the default: "
        "on CPUs dense attention is faster up to 1,024 tokens at densities from 0.3."
    )
    for tokens, config in ((1000, large), (1025, small)):
        assert "sparse attention of this density was not measured to be slower" in psa.describe_default(tokens, config)


def test_sparse_attention_is_timed_by_name_on_a_cpu():
    """At this size "auto" would take dense attention, which is exact."""
    assert psa.sparse_backend(torch.zeros(1)) == "gather"
    assert psa.sparse_backend(torch.zeros(1, device="meta")) == "auto"


def test_the_paper_scale_video_has_its_grid():
    assert psa.video_grid(75_600) == (21, 45, 80)
    for tokens in (1, 7, 250, 5000):
        frames, rows, columns = psa.video_grid(tokens)
        assert 0 < frames * rows * columns <= tokens


@pytest.mark.parametrize("density", [0.05, 0.15, 0.5, 1.0])
def test_quotas_compute_the_density_asked_for(density):
    bounds = psa.config_of_density(density, 128, 64, "pyramid").bounds
    previous, computed = 0.0, 0.0
    for pool, bound in bounds:
        computed += (bound - previous) / pool
        previous = bound
    assert computed == pytest.approx(density)


def test_quality_by_hand_on_the_ends():
    settings = PSAQualitySettings(tokens=250, heads=1, dim=16, densities=(0.2, 1.0), query_block=16, key_block=16)
    rows = {row["importance"]: row for row in psa_quality.run(settings)["rows"]}
    for row in rows.values():
        # Everything read in full is exact.
        assert row["pyramid@1.0"] < 1e-5
        assert row["pyramid@0.2"] > row["pyramid@1.0"]
        assert row["mass_in_top_tenth"] <= rows["exact mass"]["mass_in_top_tenth"] + 1e-6
        # All kinds of plan compute about the same: whole blocks of a row, of which there are 16.
        computed = row["pyramid_density@0.2"]
        assert all(abs(row[f"{kind}_density@0.2"] - computed) < 1 / 15 for kind in psa_quality.KINDS)
        assert row["binary_density@0.2"] >= computed - 1e-6


def test_quality_of_a_models_inputs(tmp_path):
    q, k, v = (torch.randn(1, 2, 96, 16) for _ in range(3))
    save_file({"q": q, "k": k, "v": v}, tmp_path / "inputs.safetensors")
    settings = PSAQualitySettings(
        inputs=tmp_path / "inputs.safetensors", densities=(1.0,), query_block=16, key_block=16
    )
    result = psa_quality.run(settings)
    assert result["shape"] == [1, 2, 96, 16]
    assert max(row["pyramid@1.0"] for row in result["rows"]) < 1e-5
    save_file({"q": q, "k": k[:, :, 1:].contiguous(), "v": v}, tmp_path / "inputs.safetensors")
    with pytest.raises(ValueError, match=r"inputs holds .*'k': \(1, 2, 95, 16\).*, expected q, k and v of one shape"):
        psa_quality.run(settings)


def test_heads_that_are_not_drawn_repeat_those_that_are(monkeypatch):
    drawn = []

    def noted(grid, *, heads, **options):
        drawn.append(heads)
        return structured_heads(grid, heads=heads, **options)

    monkeypatch.setattr(psa, "structured_heads", noted)
    seen = []
    plan = psa.make_plan
    monkeypatch.setattr(psa, "make_plan", lambda q, *rest: (seen.append(q), plan(q, *rest))[1])
    sizes = {"tokens": 128, "dim": 16, "density": 0.5, "dtype": "float32", "query_block": 16, "key_block": 16}
    psa.run(PSASettings(**sizes, heads=3, drawn_heads=2, repeats=1, device="cpu"))
    assert drawn == [2]
    assert seen[0].shape[1] == 3
    assert torch.equal(seen[0][:, 2], seen[0][:, 0])
    assert not torch.equal(seen[0][:, 1], seen[0][:, 0])


def test_structured_heads_repeat_and_are_as_sharp_as_asked():
    q, k, _ = structured_heads((4, 8, 8), heads=3, dim=32, rng=torch.Generator().manual_seed(0), sharpness=2.0)
    again = structured_heads((4, 8, 8), heads=3, dim=32, rng=torch.Generator().manual_seed(0), sharpness=2.0)[0]
    assert torch.equal(q, again)
    scores = q @ k.transpose(-1, -2) / 32**0.5
    assert float(scores.std()) == pytest.approx(2.0, rel=0.25)


@pytest.mark.parametrize(
    ("kwargs", "message"), [({"density": 0.0}, "density is 0.0"), ({"repeats": 0}, "repeats is 0")]
)
def test_wrong_settings_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PSASettings(**kwargs)
