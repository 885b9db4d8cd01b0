from __future__ import annotations

import json
import runpy
from pathlib import Path

from hiergen.registry import create

PROGRAM = Path(__file__).resolve().parents[2] / "eval" / "probe_levels.py"


def test_every_prefix_is_probed(tmp_path: Path) -> None:
    program = runpy.run_path(str(PROGRAM), run_name="probe_levels")
    create("pyramid-tiny-84", decoder_channels=8).save_pretrained(tmp_path / "model")
    settings = program["Settings"](
        tokenizer=str(tmp_path / "model"),
        out=str(tmp_path / "out"),
        num_images=12,
        probe=program["ProbeSettings"](steps=2, batch_size=4, hidden_dim=4),
    )
    program["main"](settings)
    rows = (tmp_path / "out" / "probes.md").read_text().splitlines()
    assert [row.split("|")[1:3] for row in rows[2:]] == [
        [" 0 ", " 0 "],
        [" 1 ", " 4 "],
        [" 2 ", " 20 "],
        [" 3 ", " 84 "],
    ]
    found = json.loads((tmp_path / "out" / "probes.json").read_text())
    assert [len(found[kind]) for kind in ("linear", "convolutions")] == [4, 4]
