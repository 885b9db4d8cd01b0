"""The kernels that do matrix products compiled for a GPU that is not at hand: tensor cores, asynchronous copies, nothing spilled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

PROGRAM = Path(__file__).with_name("compile_kernels.py")
COMMON = {"D": 64, "BLOCK_D": 64, "TILE": 64, "CAUSAL": False, "HAS_MASK": False, "PRECISION": "tf32"}


def compiled(module: str, kernel: str, constants: dict[str, Any], *options: str) -> dict[str, Any]:
    # In a process of its own: here the kernels are imported for the interpreter.
    command = [sys.executable, str(PROGRAM), module, kernel, json.dumps(COMMON | constants), "--target", "90", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_nothing_of_the_forward_kernel_is_spilled_on_hopper():
    blocks = {"QUERY_BLOCK": 128, "BLOCK_M": 128, "LOG_KEY_BLOCK": 7, "STAGES": 3}
    report = compiled("forward", "forward_kernel", blocks, "--num-warps", "8")
    assert report["spill_bytes"] == 0
    assert report["registers"] <= 255
    assert report["shared_bytes"] <= 99 * 1024
    assert report["async_copies"] > 0
    assert any(shape.startswith("m64n64") for shape in report["matmuls"])
    assert not report["serialized"]


def test_nothing_of_the_importance_kernel_is_spilled_on_hopper():
    report = compiled("importance", "block_lse_kernel", {"ROWS": 64, "KEYS": 16}, "--num-warps", "4")
    assert report["spill_bytes"] == 0
    assert report["registers"] <= 128
    assert report["async_copies"] > 0
    assert any(shape.startswith("m64n64") for shape in report["matmuls"])
