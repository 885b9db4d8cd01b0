"""Compile a kernel for a GPU that is not at hand, and print what the compiler made of it as JSON.

    python compile_kernels.py forward forward_kernel '{"D": 64, ...}' --target 90 --num-warps 8 --num-stages 3

It finds what a timing would later blame on the kernel: spilled registers, loads that are not asynchronous, tensor-core
instructions of the wrong shape or serialized. It measures no time. It needs Triton and no GPU.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_STRIDED = {"q_strides", "k_strides", "v_strides", "o_strides", "do_strides", "dq_strides", "dk_strides", "dv_strides"}
#: Types that the pointers point to; all others point to queries, keys and values.
_POINTERS = {
    **dict.fromkeys(("IDS", "COUNTS", "ORDER"), "i32"),
    **dict.fromkeys(("LOG_COUNTS", "LSE", "DELTA", "BLOCK_LSE", "SCORES", "COSINES"), "fp32"),
    "POOLS": "u8",
    "VISIBLE": "i64",
}


def compile_kernel(
    kernel: Any, constants: Mapping[str, Any], *, target: int, dtype: str, num_warps: int, num_stages: int
) -> dict[str, Any]:
    """Return the report of `kernel`, a `triton.jit` function, compiled for compute capability `target` / 10.

    Args:
        constants: Compile-time arguments of the kernel.
        dtype: Type of queries, keys and values, in Triton's spelling.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

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
    return _report(compiled)


def _report(compiled: Any) -> dict[str, Any]:
    """Return registers and spilled bytes per thread, shared bytes per program, and instructions."""
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
    matmuls = machine_code.count("HGMMA")
    return {
        "registers": int(found[1]),
        "spill_bytes": int(found[2]),
        "shared_bytes": int(compiled.metadata.shared),
        "matmuls": dict(shapes),
        # Whether every warpgroup instruction waits for the one before it.
        "serialized": 0 < matmuls <= machine_code.count("WARPGROUP.ARRIVE"),
        "async_copies": len(re.findall(r"cp\.async\.c[ag]\.shared\.global|cp\.async\.bulk\.tensor", assembly)),
    }


def _call(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile a kernel of pyramid attention for a GPU that is not at hand.")
    parser.add_argument("module", help="forward, backward, importance or preparation")
    parser.add_argument("kernel", help="name of the kernel in its module")
    parser.add_argument("constants", type=json.loads, help="its compile-time arguments, JSON")
    parser.add_argument("--target", type=int, default=90, help="compute capability times 10")
    parser.add_argument("--dtype", default="bf16", help="type of queries, keys and values")
    parser.add_argument("--num-warps", type=int, default=8)
    parser.add_argument("--num-stages", type=int, default=3)
    options = vars(parser.parse_args())
    # Kernels that are imported for the interpreter cannot be compiled.
    os.environ.pop("TRITON_INTERPRET", None)
    module = importlib.import_module(f"hiergen.kernels.pyramid_attention.triton.{options.pop('module')}")
    print(json.dumps(compile_kernel(getattr(module, options.pop("kernel")), options.pop("constants"), **options)))


if __name__ == "__main__":
    main()
