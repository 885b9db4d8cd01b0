from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from hiergen.registry import create

PROGRAM = Path(__file__).resolve().parents[2] / "eval" / "probe_levels.py"


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    return runpy.run_path(str(PROGRAM), run_name="probe_levels")


def test_every_prefix_is_probed(program: dict[str, Any], tmp_path: Path) -> None:
    create("pyramid-tiny-84", decoder_channels=8).save_pretrained(tmp_path / "model")
    settings = program["Settings"](
        tokenizer=str(tmp_path / "model"),
        out=str(tmp_path / "out"),
        num_images=12,
        probe=program["ProbeSettings"](steps=2, batch_size=4, hidden_dim=4),
    )
    program["main"](settings)
    rows = (tmp_path / "out" / "probes.md").read_text().splitlines()
    assert rows[0].startswith("| levels | tokens | edges, linear | edges, convolutions | foreground, linear |")
    assert [row.split("|")[1:3] for row in rows[2:]] == [
        [" 0 ", " 0 "],
        [" 1 ", " 4 "],
        [" 2 ", " 20 "],
        [" 3 ", " 84 "],
    ]
    for name in settings.targets:
        found = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert found["num_images"] == 12
        assert [len(found[kind]) for kind in ("linear", "convolutions")] == [4, 4]
    assert (tmp_path / "out" / "probes.png").is_file()


def test_counts_are_those_of_the_foreground(program: dict[str, Any]) -> None:
    images = torch.zeros(1, 3, 16, 16)
    images[:, :, 2:5, 2:5] = images[:, :, 9:12, 9:12] = 1.0
    assert program["make_targets"](("count",), images, torch.zeros(1), ("a",))["count"].tolist() == [[2.0]]


def test_groups_are_what_stands_before_the_slash(program: dict[str, Any]) -> None:
    found = program["make_targets"](
        ("group", "class"), torch.zeros(3, 3, 4, 4), torch.tensor([2, 0, 1]), ("b/x", "a/x", "b/y")
    )
    assert found["group"].tolist() == [1, 1, 0]
    assert found["class"].tolist() == [2, 0, 1]
