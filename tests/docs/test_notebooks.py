"""Every notebook runs from its first cell to its last, in a folder of its own, without a kernel; only the training is shorter."""

from __future__ import annotations

import ast
import json
import linecache
from pathlib import Path

import matplotlib as mpl
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
#: What a test writes in place of a line of code.
SHORTER = {"samples = 24_000": "samples = 640"}
#: Pictures that a notebook leaves.
PICTURES = {
    "first_image": {"levels.png"},
    "own_tokenizer": {"curves.png", "rebuilt.png"},
    "sparse_attention": {"plan.png"},
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with mpl.rc_context({"backend": "agg"}):
        run(path)
    assert {found.name for found in tmp_path.glob("*.png")} == PICTURES[path.stem]


def run(path: Path) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        if cell["cell_type"] != "code":
            continue
        text = "".join(cell["source"])
        for line, short in SHORTER.items():
            text = text.replace(line, short)
        name = f"{path.stem}, cell {number}"
        # So that an error shows its line.
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        exec(compile(text, name, "exec"), namespace)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_what_it_printed(path) -> None:
    notebook = json.loads(path.read_text())
    assert notebook["nbformat"] == 4
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            ast.parse("".join(cell["source"]))
