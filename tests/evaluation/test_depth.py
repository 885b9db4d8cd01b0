import json
import math
import runpy
import sys

import pytest
import torch

from hiergen.data.codes import write_codes
from hiergen.evaluation.depth.exits import read_exits
from hiergen.evaluation.depth.study import DepthStudySettings, cost, run_depth_study
from hiergen.evaluation.depth.variants import CONVERSIONS, VARIANTS
from hiergen.pyramid import TokenPyramid
from hiergen.registry import create

TOY = {"dim": 32, "num_heads": 4, "ffn_dim": 32}


@pytest.fixture
def study(tmp_path, monkeypatch) -> DepthStudySettings:
    specs = create("har-tiny").specs

    def encode(start: int, stop: int) -> tuple[list[TokenPyramid], torch.Tensor]:
        rng = torch.Generator().manual_seed(start)
        levels = tuple(torch.randint(512, (stop - start, spec.num_tokens), generator=rng) for spec in specs)
        return [TokenPyramid(levels, specs)], torch.arange(stop - start) % 10

    for name in ("train", "test"):
        write_codes(tmp_path / name, encode, num_samples=20, classes=[str(n) for n in range(10)], source=name)
    for name, change in list(VARIANTS.items()):
        monkeypatch.setitem(VARIANTS, name, {**change, **TOY})
    return DepthStudySettings(
        codes=str(tmp_path / "train"),
        test_codes=str(tmp_path / "test"),
        out=str(tmp_path / "out"),
        seeds=(0,),
        samples=16,
        more_samples=16,
        batch_size=8,
        num_generated=4,
        variants=("plain-4", "cycle-2x2", "chains-2+2", "average-rank-4"),
    )


def test_all_parts_write_their_tables(study, tmp_path, capsys) -> None:
    run_depth_study(study)
    printed = capsys.readouterr().out
    rows = {"plans": "| chains-2+2 |", "conversion": "| average-rank-4 |", "loops": "| cycle-2x2 |", "exits": "oracle"}
    found = {}
    for part, row in rows.items():
        text = (tmp_path / "out" / f"{part}.md").read_text()
        assert row in text
        assert text in printed
        values = json.loads((tmp_path / "out" / part / "study.json").read_text())["values"]
        found[part] = {variant: seeds["0"] for variant, seeds in values.items()}
    # With the loops of its training a model is what it was; one chain or exit alone is no first one.
    assert found["loops"]["cycle-2x2"]["loops_2"] == pytest.approx(found["plans"]["cycle-2x2"]["nats"])
    assert found["loops"]["cycle-2x2"]["loops_1"] == pytest.approx(found["plans"]["cycle-2x2"]["first_nats"])
    plain = found["plans"]["plain-4"]
    assert plain["first_nats"] == plain["fine_first_nats"] == plain["nats"]
    assert f"| {plain['nats']:.3f} |  |  |  |" in (tmp_path / "out" / "plans.md").read_text()
    chains = found["plans"]["chains-2+2"]
    assert (
        min(chains["nats"], chains["first_nats"])
        < chains["fine_first_nats"]
        < max(chains["nats"], chains["first_nats"])
    )
    for values in found["exits"].values():
        assert 1 <= values["rate_oracle"] <= 2


def test_every_variant_can_be_built_and_costs_what_its_plan_says() -> None:
    with torch.device("cpu"):
        costs = {name: cost(create("har-tiny", **change)) for name, change in VARIANTS.items()}
    plain, cycled = costs["plain-4"], costs["cycle-2x2"]
    assert cycled["parameters"] == plain["parameters"] / 2
    assert cycled["multiplications"] == plain["multiplications"]
    assert costs["sandwich-1+1x4+1"] == costs["cycle-3x2"]
    assert costs["sandwich-1+1x4+1"]["multiplications"] == pytest.approx(1.5 * plain["multiplications"])
    chained = costs["chains-2+2"]
    assert chained["multiplications"] == pytest.approx(0.75 * plain["multiplications"])
    assert set(CONVERSIONS) > {"plain-4", "average-rank-0", "lower-rank-4", "ladder"}


def test_conversions_are_what_they_are_called() -> None:
    source = create("har-tiny", **TOY, depth=4)
    assert CONVERSIONS["plain-4"](source) is source
    assert [step.lag for step in CONVERSIONS["ladder"](source).blocks.plan.steps] == [1] * 4
    steps = CONVERSIONS["stepwise-rank-4"](source).blocks.plan.steps
    assert [(step.block, step.rank) for step in steps] == [(0, 4), (1, 4), (0, 4), (1, 4)]


@pytest.mark.parametrize(("sharpness", "loops"), [(0.0, 2), (1e3, 1)])
def test_exits_are_taken_by_who_is_sure(sharpness: float, loops: int) -> None:
    model = create("har-tiny", **{**VARIANTS["cycle-2x2-exits"], **TOY}).eval()
    torch.nn.init.normal_(model.head.weight, std=sharpness, generator=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(512, (6, 16), generator=rng), torch.arange(6)
    found = read_exits(model, ids, labels, seed=0, count=3)
    for rule in ("0.05", "0.8"):
        assert found[f"loops_{rule}"] == found[f"drawn_loops_{rule}"] == loops
        assert found[f"rate_{rule}"] == 2 / loops
        expected = model.exit_logits(ids, labels)[loops - 1].detach().flatten(0, 1)
        assert found[f"nats_{rule}"] == pytest.approx(float(torch.nn.functional.cross_entropy(expected, ids.flatten())))
    if not sharpness:
        assert found["nats_0.05"] == pytest.approx(math.log(512))
        assert found["loops_oracle"] == 1


def test_the_study_is_a_command(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["depth", "--help"])
    # Another test has imported it to check its types.
    monkeypatch.delitem(sys.modules, "hiergen.evaluation.depth.__main__", raising=False)
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("hiergen.evaluation.depth", run_name="__main__")
    assert "--test-codes" in capsys.readouterr().out
