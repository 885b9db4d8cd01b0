"""What the pages name is there: paths, modules, programs, rooms; each check is shown to fail on a planted fault."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("hiergen", "docs", "eval", "tests", "tokenizers", "generators", "demos")
#: The record of changes names what there was.
RECORDS = {"CHANGELOG.md"}
PATH = re.compile(rf"(?<![\w/.:-])(?:{'|'.join(FOLDERS)})/[\w./*-]*[\w/*]")
MAX_WORDS = 40
MODULE = re.compile(r"\bhiergen(?:\.[a-z_0-9]+)+")


def pages(root: Path) -> list[Path]:
    places = ("*.md", "docs/**/*.md", "hiergen/**/*.md", *(f"{name}/*.md" for name in FOLDERS))
    return sorted({page for place in places for page in root.glob(place) if page.name not in RECORDS})


def missing_paths(root: Path) -> list[str]:
    """Paths from a folder at the top that do not exist; the glossary's are from the library's folder."""
    found = []
    for page in pages(root):
        bases = (root, root / "hiergen") if page.name == "glossary.md" else (root,)
        for path in {match.group() for match in PATH.finditer(page.read_text())}:
            if not any(any(base.glob(path.rstrip("/"))) for base in bases):
                found.append(f"{page.relative_to(root)}: {path}")
    return found


def missing_modules(root: Path) -> list[str]:
    """Dotted names whose first parts are no module; what comes after a module is its own affair."""
    found = []
    for page in pages(root):
        for name in set(MODULE.findall(page.read_text())):
            parts = name.split(".")
            file = root.joinpath(*parts)
            inside = root.joinpath(*parts[:-1])
            names = inside.with_suffix(".py") if inside.with_suffix(".py").is_file() else inside / "__init__.py"
            is_module = file.is_dir() or file.with_suffix(".py").is_file()
            if not is_module and not (names.is_file() and re.search(rf"\b{parts[-1]}\b", names.read_text())):
                found.append(f"{page.relative_to(root)}: {name}")
    return found


def unnamed_words_of_the_glossary(root: Path) -> list[str]:
    """Files and folders in the last column of the glossary's tables that are not in the library, nor under its name."""
    rows = [line for line in (root / "docs" / "glossary.md").read_text().splitlines() if line.startswith("| ")]
    named = {path for row in rows for path in re.findall(r"`([\w./-]+(?:\.py|/))`", row.rsplit("|", 2)[1])}
    bases = (root, root / "hiergen")
    return [path for path in named if not any((base / path).exists() or any(base.rglob(path)) for base in bases)]


def unlisted_programs(root: Path) -> list[str]:
    """Programs that the page of their folder leaves out."""
    found = []
    for name in ("tokenizers", "generators", "eval", "demos"):
        text = (root / name / "README.md").read_text()
        found += [f"{name}/{path.name}" for path in (root / name).glob("*.py") if f"`{path.name}`" not in text]
    return found


def unlisted_results(root: Path) -> list[str]:
    folder = root / "docs" / "results"
    text = (folder / "README.md").read_text()
    return [page.name for page in folder.glob("*.md") if page.name != "README.md" and f"]({page.name})" not in text]


def unlisted_rooms(root: Path) -> list[str]:
    """Folders and modules of the library that the README's tree leaves out."""
    tree = re.search(r"^hiergen/ .*?^```", (root / "README.md").read_text(), re.M | re.S)
    names = {path.name + "/" if path.is_dir() else path.name for path in (root / "hiergen").iterdir()}
    hidden = {name for name in names if name.startswith(("_", ".")) or not name.endswith(("/", ".py"))}
    return sorted(name for name in names - hidden if tree is None or name not in tree.group())


def wrong_ranks(root: Path) -> list[str]:
    """Lines of the order of imports that are not those that the repository's test enforces, the highest first."""
    ranks = runpy.run_path(str(root / "tests" / "test_repository.py"))["RANKS"]
    wanted = [sorted(set(names) - {"__init__", "__main__"}) for names in reversed(ranks)]
    block = re.search(r"^```\n(cli\n.*?)^```", (root / "CONTRIBUTING.md").read_text(), re.M | re.S)
    shown = [sorted(line.split(", ")) for line in block.group(1).splitlines()] if block else []
    return [", ".join(names) for names in wanted if names and names not in shown] + (
        [] if [names for names in wanted if names] == shown else ["the order"]
    )


def unnumbered_decisions(root: Path) -> list[str]:
    names = sorted(path.name for path in (root / "docs" / "decisions").glob("*.md"))
    return [name for number, name in enumerate(names, 1) if not name.startswith(f"{number:04}-")]


def hard_sentences(root: Path) -> list[str]:
    """Sentences of more than 40 words, and "x a y" where "x per y" is meant; code, tables and the models' cards aside."""
    idiom = runpy.run_path(str(ROOT / "tests" / "test_repository.py"))["IDIOM"]
    found = []
    for page in pages(root):
        if "models" in page.parts:
            continue
        text = re.sub(r"^```.*?^```$|^(?:\||    ).*?$|`[^`]*`", "Code", page.read_text(), flags=re.M | re.S)
        found += [f"{page.relative_to(root)}: {match.group()}" for match in idiom.finditer(text)]
        # A paragraph, a point of a list or a heading ends a sentence as well.
        for part in re.split(r"\n\s*\n|\n\s*(?:[-*>#]|\d+\.) |(?<=[.!?])\**\s+(?=[A-Z*\"(\[0-9])", text):
            if len(re.findall(r"\S*\w\S*", re.sub(r"\]\([^)]*\)", "]", part))) > MAX_WORDS:
                found.append(f"{page.relative_to(root)}: {part[:80]}")
    return found


CHECKS: dict[Callable[[Path], list[str]], tuple[str, str]] = {
    missing_paths: ("docs/a.md", "see `hiergen/nothing.py`"),
    missing_modules: ("docs/a.md", "see `hiergen.nothing.there`"),
    unnamed_words_of_the_glossary: ("docs/glossary.md", "| word | `nothing/there.py` |\n"),
    unlisted_programs: ("eval/unlisted.py", ""),
    unlisted_results: ("docs/results/unlisted.md", ""),
    unlisted_rooms: ("hiergen/unlisted/__init__.py", ""),
    wrong_ranks: ("CONTRIBUTING.md", "```\ncli\nnn\n```\n"),
    unnumbered_decisions: ("docs/decisions/a.md", ""),
    hard_sentences: ("docs/a.md", f"This is {'very ' * 40}long."),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_pages_keep_the_rule(check) -> None:
    assert check(ROOT) == []


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_rule_sees_a_planted_fault(check, tmp_path) -> None:
    for name in (*FOLDERS, "docs/results", "docs/decisions"):
        (tmp_path / name).mkdir()
    for name in (*FOLDERS, "docs/results"):
        (tmp_path / name / "README.md").write_text("")
    (tmp_path / "docs" / "glossary.md").write_text("")
    (tmp_path / "README.md").write_text("")
    (tmp_path / "tests" / "test_repository.py").write_text('RANKS = (("__init__", "nn"), ("cli",))\n')
    (tmp_path / "CONTRIBUTING.md").write_text("```\ncli\nnn\n```\n")
    if check is wrong_ranks:
        assert check(tmp_path) == []
        (tmp_path / "tests" / "test_repository.py").write_text('RANKS = (("nn",), ("new",), ("cli",))\n')
        assert check(tmp_path) == ["new", "the order"]
        return
    assert check(tmp_path) == []
    name, text = CHECKS[check]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    assert len(check(tmp_path)) == 1
