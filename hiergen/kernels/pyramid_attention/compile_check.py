"""Compile the kernels for GPUs that are not at hand, and report registers, spills, shared memory and instructions.

It finds what a timing would later blame on the kernel: spilled registers, loads that are not asynchronous, tensor-core
instructions of the wrong shape or serialized. It measures no time.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_STRIDED = {"q_strides", "k_strides", "v_strides", "o_strides", "do_strides", "dq_strides", "dk_strides", "dv_strides"}
#: Types of what the pointers point to; the others to queries, keys and values.
_POINTERS = {
    **dict.fromkeys(("IDS", "COUNTS", "ORDER"), "i32"),
    **dict.fromkeys(("LOG_COUNTS", "LSE", "DELTA", "BLOCK_LSE", "SCORES", "COSINES"), "fp32"),
    "POOLS": "u8",
    "VISIBLE": "i64",
}


@dataclasses.dataclass(frozen=True)
class CompileReport:
    """What the compiler made of one kernel.

    Attributes:
        registers: A thread's, at most 255.
        spill_bytes: Of stack a thread uses.
        shared_bytes: Of a program.
        matmuls: Tensor-core instructions by shape.
        serialized: Whether every warpgroup instruction waits for the one before it.
        async_copies: Copies from global to shared memory that do not stall.
    """

    kernel: str
    target: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    num_warps: int
    matmuls: Mapping[str, int]
    serialized: bool
    async_copies: int


def compile_kernel(
    kernel: Any,
    constants: Mapping[str, Any],
    *,
    target: int = 90,
    dtype: str = "bf16",
    num_warps: int = 8,
    num_stages: int = 3,
) -> CompileReport:
    """Return the report of `kernel` compiled for compute capability `target` / 10.

    Needs Triton outside its interpreter (`TRITON_INTERPRET` unset when the kernels were imported), no GPU.

    Args:
        kernel: A `triton.jit` function of this package.
        constants: Its compile-time arguments.
        dtype: Of queries, keys and values, in Triton's spelling.

    Raises:
        RuntimeError: If the kernel was imported for the interpreter.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not hasattr(kernel, "arg_names") or type(kernel).__name__ == "InterpretedFunction":
        raise RuntimeError(
            "the kernels were imported with TRITON_INTERPRET set; unset it in a new process to compile them"
        )
    signature: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    divisible = [["tt.divisibility", 16]]
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in _STRIDED:
            signature[name] = ("i32", "i32", "i32")
            attributes |= {(index, item): divisible for item in range(3)}
        elif name.isupper():
            signature[name] = "*" + _POINTERS.get(name, dtype)
            attributes[(index,)] = divisible
        else:
            signature[name] = "fp32" if name.startswith("scale") else "i32"
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    return _report(compiled, kernel.__name__, target, num_warps)


def _report(compiled: Any, name: str, target: int, num_warps: int) -> CompileReport:
    import triton.backends.nvidia as nvidia

    assembly = compiled.asm["ptx"]
    tools = Path(nvidia.__file__).parent / "bin"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        usage = _call(tools / "cuobjdump", "-res-usage", str(binary))
        machine_code = _call(tools / "nvdisasm", "-c", str(binary)) if os.access(tools / "nvdisasm", os.X_OK) else ""
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump reported no registers: {usage[:200]!r}")
    shapes = collections.Counter(re.findall(r"wgmma\.mma_async\.sync\.aligned\.(m\d+n\d+k\d+)", assembly))
    shapes += collections.Counter(re.findall(r"mma\.sync\.aligned\.(m\d+n\d+k\d+)", assembly))
    return CompileReport(
        kernel=name,
        target=target,
        registers=int(found[1]),
        spill_bytes=int(found[2]),
        shared_bytes=int(compiled.metadata.shared),
        num_warps=num_warps,
        matmuls=dict(shapes),
        serialized=machine_code.count("HGMMA") > 0
        and machine_code.count("WARPGROUP.ARRIVE") >= machine_code.count("HGMMA"),
        async_copies=len(re.findall(r"cp\.async\.c[ag]\.shared\.global|cp\.async\.bulk\.tensor", assembly)),
    )


def _call(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout
