from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_ten_kills_lose_nothing() -> None:
    command = [sys.executable, str(Path(__file__).with_name("kill_training.py")), "--kills", "10", "--steps", "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "10 kills" in done.stdout
    assert "0 checkpoints lost, 0 broken" in done.stdout
