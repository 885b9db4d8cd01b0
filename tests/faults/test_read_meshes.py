from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_random_meshes_of_every_format_are_read_right_or_refused_by_name() -> None:
    command = [sys.executable, str(Path(__file__).with_name("read_meshes.py")), "--count", "200", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert set(found) == {"obj", "ply", "stl", "off", "gltf"}
    assert all(counts["wrong"] == 0 and counts["right"] + counts["refused"] == 40 for counts in found.values())
    assert all(found[kind]["right"] == 40 for kind in ("obj", "ply", "stl"))
    assert found["off"]["right"] > 20
    assert found["gltf"]["right"] > 20
