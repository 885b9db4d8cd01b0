"""The pages of docs/ say what is so: named tests exist, links lead somewhere, the reference can be built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import hiergen
from hiergen.demo.library import packaged_models

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "results").glob("*.md")),
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
    *(ROOT / name / "README.md" for name in ("demos", "tokenizers", "generators", "eval", "hiergen/video")),
    ROOT / "CONTRIBUTING.md",
]


def test_every_test_that_the_precision_page_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "precision.md").read_text())
    assert len(named) > 20
    for path, name in named:
        assert f"def {name}" in (ROOT / path).read_text(), f"{path}::{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("card", packaged_models(), ids=lambda path: path.name)
def test_the_code_of_a_model_card_runs(card) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (card / "README.md").read_text(), re.S)
    namespace: dict[str, object] = {}
    exec(compile(block, str(card), "exec"), namespace)
    assert type(namespace.get("pipe", namespace.get("tokenizer"))).__name__ in hiergen.__all__
