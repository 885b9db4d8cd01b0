"""The kernels that do matrix products compiled for a GPU that is not at hand: tensor cores, asynchronous copies, nothing spilled."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

PROGRAM = """
from hiergen.kernels.pyramid_attention.compile_check import compile_kernel
from hiergen.kernels.pyramid_attention.triton_forward import forward_kernel
from hiergen.kernels.pyramid_attention.triton_importance import block_lse_kernel

constants = dict(D=64, BLOCK_D=64, QUERY_BLOCK=128, BLOCK_M=128, LOG_KEY_BLOCK=7, TILE=64, STAGES=3, CAUSAL=False, HAS_MASK=False, PRECISION="tf32")
report = compile_kernel(forward_kernel, constants, target=90, num_warps=8, num_stages=3)
assert report.spill_bytes == 0, report
assert report.registers <= 255, report
assert report.shared_bytes <= 99 * 1024, report
assert report.async_copies > 0, report
assert any(shape.startswith("m64n64") for shape in report.matmuls), report
assert not report.serialized, report
constants = dict(D=64, BLOCK_D=64, ROWS=64, TILE=64, KEYS=16, CAUSAL=False, HAS_MASK=False, PRECISION="tf32")
report = compile_kernel(block_lse_kernel, constants, target=90, num_warps=4, num_stages=3)
assert report.spill_bytes == 0, report
assert report.registers <= 128, report
assert report.async_copies > 0, report
assert any(shape.startswith("m64n64") for shape in report.matmuls), report
"""


def test_nothing_is_spilled_on_hopper():
    # In a process of its own: here the kernels are imported for the interpreter.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_kernels_of_the_interpreter_cannot_be_compiled():
    from hiergen.kernels.pyramid_attention.compile_check import compile_kernel
    from hiergen.kernels.pyramid_attention.triton_forward import forward_kernel

    if "TRITON_INTERPRET" not in os.environ:
        pytest.skip("the kernels are compiled here")
    with pytest.raises(RuntimeError, match="imported with TRITON_INTERPRET set"):
        compile_kernel(forward_kernel, {})
