import pytest
import torch

from hiergen.data.codes import write_codes
from hiergen.evaluation.depth_study import CONVERSIONS, VARIANTS, DepthStudySettings, cost, run_depth_study
from hiergen.pyramid import TokenPyramid
from hiergen.registry import create


def test_both_parts_write_their_tables(tmp_path, monkeypatch, capsys) -> None:
    specs = create("har-tiny").specs

    def encode(start: int, stop: int) -> tuple[list[TokenPyramid], torch.Tensor]:
        rng = torch.Generator().manual_seed(start)
        levels = tuple(torch.randint(512, (stop - start, spec.num_tokens), generator=rng) for spec in specs)
        return [TokenPyramid(levels, specs)], torch.arange(stop - start) % 10

    for name in ("train", "test"):
        write_codes(tmp_path / name, encode, num_samples=20, classes=[str(n) for n in range(10)], source=name)
    small = {name: {**change, "dim": 32, "num_heads": 4, "ffn_dim": 32} for name, change in VARIANTS.items()}
    for name, change in small.items():
        monkeypatch.setitem(VARIANTS, name, change)
    paths = {"codes": str(tmp_path / "train"), "test_codes": str(tmp_path / "test"), "out": str(tmp_path / "out")}
    budget = {"seeds": (0,), "samples": 16, "more_samples": 16, "batch_size": 8}
    run_depth_study(DepthStudySettings(**paths, **budget, variants=("plain-4", "cycle-2x2-rank-8", "chains-2+2")))
    run_depth_study(DepthStudySettings(**paths, **budget, part="conversion", variants=("plain-4", "average-rank-4")))
    printed = capsys.readouterr().out
    for part, row in (("plans", "| chains-2+2 |"), ("conversion", "| average-rank-4 |")):
        text = (tmp_path / "out" / f"{part}.md").read_text()
        assert text.count(row) == 2
        assert text in printed


def test_every_variant_can_be_built_and_costs_what_its_plan_says() -> None:
    with torch.device("cpu"):
        costs = {name: cost(create("har-tiny", **change)) for name, change in VARIANTS.items()}
    plain, cycled = costs["plain-4"], costs["cycle-2x2"]
    assert cycled["parameters"] == plain["parameters"] / 2
    assert cycled["multiplications"] == plain["multiplications"]
    assert costs["sandwich-1+1x4+1"]["multiplications"] == pytest.approx(1.5 * plain["multiplications"])
    chained, dense = costs["chains-2+2"], costs["dense-4-heads"]
    assert chained["multiplications"] == pytest.approx(0.75 * dense["multiplications"])
    assert set(CONVERSIONS) > {"plain-4", "average-rank-0", "lower-rank-16"}
