"""The parts of pyramid attention import downwards only, imports inside functions included."""

from __future__ import annotations

import ast
from pathlib import Path

import hiergen.kernels.pyramid_attention

PACKAGE = "hiergen.kernels.pyramid_attention"
#: From the lowest to the highest; the parts of one entry may import each other.
LAYERS = ("pooling", "config", "plan", "triton", "planning", "backends", "attention", "picture", "__init__")


def upward_imports(root: Path) -> list[str]:
    found = []
    for path in root.rglob("*.py"):
        part = path.relative_to(root).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(PACKAGE):
                continue
            target = (node.module or "").removeprefix(PACKAGE).removeprefix(".").split(".")[0] or "__init__"
            if LAYERS.index(target) > LAYERS.index(part):
                found.append(f"{path.relative_to(root)}:{node.lineno} imports {target}")
    return found


def test_no_part_imports_one_above_it(tmp_path: Path) -> None:
    assert upward_imports(Path(hiergen.kernels.pyramid_attention.__file__).parent) == []
    (tmp_path / "plan.py").write_text(f"def f():\n    from {PACKAGE}.triton.operators import plan_lists_op\n")
    assert upward_imports(tmp_path) == ["plan.py:2 imports triton"]
