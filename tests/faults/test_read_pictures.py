from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_two_hundred_pictures_of_every_kind_are_read_right_or_refused_by_name() -> None:
    command = [sys.executable, str(Path(__file__).with_name("read_pictures.py")), "--count", "210"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    for maker, tally in found.items():
        assert tally["right"] + tally["refused"] == 30, maker
        assert tally["refused"] == 0 or maker == "tiff", maker
