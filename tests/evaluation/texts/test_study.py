"""The study of sequences, so short that nothing is learned."""

from __future__ import annotations

import dataclasses
import json

import pytest

from hiergen.evaluation.texts import study
from hiergen.evaluation.texts.study import VARIANTS, SequenceStudy, SequenceStudySettings, run_sequence_study
from hiergen.registry import create

TINY = {"layout": ["T1"], "dims": [16], "num_heads": [2]}
CHUNKS = {"layout": ["m1", ["T1"], "m1"], "dims": [16, 32], "num_heads": [2, 2], "head_dim": 16, "state_dim": 8}
SIZES = {
    "flat-transformer": TINY,
    "block": {"dim": 16, "depth": 1, "num_heads": 2, "token_dim": 16, "token_depth": 1, "token_heads": 2},
    "hnet-every-6": CHUNKS,
    "flat-vocabulary": TINY,
}


@pytest.fixture
def settings(tmp_path, monkeypatch) -> SequenceStudySettings:
    for name, sizes in SIZES.items():
        monkeypatch.setitem(VARIANTS, name, dataclasses.replace(VARIANTS[name], sizes=sizes))
    monkeypatch.setattr(study, "_H_NET_SMALL", CHUNKS)
    monkeypatch.setattr(study, "TARGETS", (3.0,))
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.txt").write_text(f"The text of number {number} has some words. " * 8)
    budget = {"samples": 16, "compression_samples": 16, "length": 64, "seeds": (0,)}
    return SequenceStudySettings(out=str(tmp_path / "out"), source=str(folder), variants=tuple(SIZES), **budget)


def test_both_parts_write_their_tables(settings, tmp_path, capsys) -> None:
    run_sequence_study(settings)
    run_sequence_study(dataclasses.replace(settings, part="compression"))
    printed = capsys.readouterr().out
    for part, row in (("models", "| hnet-every-6 |"), ("compression", "| 3 |")):
        text = (tmp_path / "out" / f"{part}.md").read_text()
        assert text.count(row) == 3
        assert text in printed
    found = json.loads((tmp_path / "out" / "models" / "study.json").read_text())["values"]
    for name in SIZES:
        row = found[name]["0"]
        assert 1 < row["bits_per_byte"] < 9
        assert row["noise_costs"] == row["noisy_bits_per_byte"] - row["bits_per_byte"]
    assert found["hnet-every-6"]["0"]["compression"] == pytest.approx(64 / 11, rel=0.1)
    assert found["block"]["0"]["parameters"] == sum(
        p.numel() for p in create("block-tiny", **SIZES["block"]).parameters()
    )


def test_an_unknown_model_is_named(settings) -> None:
    with pytest.raises(ValueError, match=r"variants holds \['hnett'\], expected some of flat-transformer, "):
        SequenceStudy(dataclasses.replace(settings, variants=("hnett",)))


def test_the_small_models_have_the_parameters_of_the_flat_ones() -> None:
    count = {
        name: sum(p.numel() for p in create(VARIANTS[name].preset, **VARIANTS[name].sizes).parameters())
        for name in VARIANTS
        if name != "flat-vocabulary"
    }
    for name in ("flat-mamba", "block-small", "byte-word-small", "hnet-small"):
        assert count[name] == pytest.approx(count["flat-transformer"], rel=0.07), name
