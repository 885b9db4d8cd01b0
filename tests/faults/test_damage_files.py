from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_a_hundred_damaged_files_of_every_kind_load_or_are_refused_by_name() -> None:
    command = [sys.executable, str(Path(__file__).with_name("damage_files.py")), "--count", "100"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert set(found) == {"picture", "mesh", "shard", "config", "weights", "tokens"}
    for kind, tally in found.items():
        assert tally["read"] + tally["refused"] == 100, kind
        assert tally["refused"] > 30, kind
