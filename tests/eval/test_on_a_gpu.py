"""The program for a GPU: all its parts on a CPU, at small sizes, so that nothing fails for a typo on the day that there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, str(ROOT / "eval" / "on_a_gpu.py")]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*COMMAND, *args], env=environment, capture_output=True, text=True, check=False)


def test_every_part_runs_to_its_end(tmp_path) -> None:
    done = run("--toy", "True", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    parts = json.loads((tmp_path / "on_a_gpu.json").read_text())["parts"]
    states = {name: (part["state"], part.get("traceback")) for name, part in parts.items()}
    assert states == dict.fromkeys(states, ("done", None))
    found = {f"{name}: {piece}": value for name, part in parts.items() for piece, value in part["found"].items()}
    failed = [name for name, value in found.items() if isinstance(value, dict) and "error" in value]
    assert failed == ["psa backward: dense, cuDNN"], [found[name]["error"] for name in failed]
    checks = [value for name, value in found.items() if name.startswith("numerics: attention")]
    assert len(checks) == 2
    assert all(check[name]["holds"] for check in checks for name in ("out", "dq", "dk", "dv"))
    for name in ("har: batch 2", "var: batch 2", "mar: batch 2", "restok: decode 2"):
        assert found[f"{name}, work"]["flops"] > 0
        assert all(found[f"{name}, {mode}"]["equal"] == 1 for mode in ("eager", "one graph", "compiled"))
    assert found["training: har-tiny, compiled"]["mfu"] > 0
    assert found["training: tokenizer"]["mfu"] > 0
    assert [found[f"{run}"]["skipped"] for run in ("short run: no", "short run in half precision: bf16")] == [1, 1]
    assert found["half precision: sampling, var, float16"]["tokens"] > 0
    assert found["psa: density 0.3"]["attention"]["pyramid, all in"]["ms"] > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"only": ("plannin",)}, "only names 'plannin', which is no part; did you mean planning?"),
        ({"minutes": 0.0}, "minutes is 0.0, expected above 0"),
        ({}, "no GPU is seen, which the parts are for: give --toy True to try them on a CPU"),
    ],
)
def test_what_cannot_be_is_said(values, message, monkeypatch) -> None:
    """In this process: importing takes longer than the refusal."""
    spec = importlib.util.spec_from_file_location("on_a_gpu", COMMAND[1])
    program = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "on_a_gpu", program)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    spec.loader.exec_module(program)
    with pytest.raises(ValueError) as refused:
        program.main(program.Settings(**values))
    assert message in str(refused.value)
