"""The rules of the repository's layout, each shown to fail on a planted fault."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("tokenizers", "generators", "eval", "demos")
MAX_LINES = 400
#: Of one folder, folders inside it included; the package itself has more, as the design says.
MOST_ENTRIES = 14

#: Packages and modules of the library from the lowest to the highest; imports point down or stay inside one name.
RANKS: tuple[tuple[str, ...], ...] = (
    # The registry names modules as text and imports them when they are asked for.
    (
        "__init__",
        "checked",
        "config",
        "environment",
        "files",
        "known",
        "levels",
        "pyramid",
        "registry",
        "seeding",
        "telling",
    ),
    ("kernels",),
    ("nn",),
    ("bottlenecks",),
    ("pretrained",),
    ("losses",),
    ("tokenizers", "generators"),
    ("geometry",),
    ("convert", "metrics", "data", "video", "figures"),
    ("training", "pipelines"),
    ("quickstart", "benchmarks", "demo", "evaluation"),
    ("cli",),
    ("__main__",),
)


def sources(root: Path) -> list[Path]:
    return [path for path in root.rglob("*.py") if ".venv" not in path.parts and "build" not in path.parts]


def stray_packages(root: Path) -> list[str]:
    """An `__init__.py` outside hiergen/ would shadow installed packages such as Hugging Face's `tokenizers`."""
    inits = [path.relative_to(root) for path in sources(root) if path.name == "__init__.py"]
    return [str(path) for path in inits if path.parts[0] != "hiergen"]


def misplaced_tests(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for name in PROGRAMS for path in (root / name).rglob("test_*.py")]


def shadowing_names(root: Path) -> list[str]:
    """A program named like an installed or standard module would be imported in its place by its neighbors."""
    installed = {name for name in importlib.metadata.packages_distributions() if name != "hiergen"}
    taken = installed | set(sys.stdlib_module_names)
    return [
        str(path.relative_to(root)) for name in PROGRAMS for path in (root / name).rglob("*.py") if path.stem in taken
    ]


def main_blocks(root: Path) -> list[str]:
    """Only `hiergen/__main__.py` runs; the rest of the library is imported."""
    found = [path for path in sources(root / "hiergen") if re.search(r"^if __name__ ==", path.read_text(), re.M)]
    return [str(path.relative_to(root)) for path in found if path.name != "__main__.py"]


def upward_imports(root: Path) -> list[str]:
    rank = {name: index for index, names in enumerate(RANKS) for name in names}
    found = []
    for path in sources(root / "hiergen"):
        inside = path.relative_to(root / "hiergen").with_suffix("").parts[0]
        if inside not in rank:
            found.append(f"{inside} has no rank")
            continue
        if inside == "__init__":
            # The public names are imported when they are first used.
            continue
        for target, line in imported_parts(path):
            if target not in rank:
                found.append(f"{path.relative_to(root)}:{line} imports {target}, which has no rank")
            elif rank[target] > rank[inside] or (
                rank[target] == rank[inside] and {target, inside} == {"tokenizers", "generators"}
            ):
                found.append(f"{path.relative_to(root)}:{line} ({inside}) imports {target}")
    return found


def imported_parts(path: Path) -> list[tuple[str, int]]:
    """Return the part of hiergen and the line of every import, those inside functions too."""
    parts = []
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            whole = node.module == "hiergen"
            names = [f"hiergen.{alias.name}" for alias in node.names] if whole else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            pieces = name.split(".")
            if pieces[0] == "hiergen" and len(pieces) > 1 and not pieces[1].startswith("__version"):
                parts.append((pieces[1], node.lineno))
    return parts


def relative_imports(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in sources(root / "hiergen")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def long_files(root: Path) -> list[str]:
    counted = [(path.relative_to(root), len(path.read_text().splitlines())) for path in sources(root / "hiergen")]
    return [f"{path}: {lines} lines" for path, lines in counted if lines > MAX_LINES]


#: "One a level" for "one per level": which words stand before and behind.
COUNTED = r"one|each|steps?|tokens|samples|images?|files?|values?|rows?|points|clips|bits|numbers?|times?|tests?|keys?|subclass|copy|pass|draws?|epochs?"
PLACES = (
    r"sample|level|step|token|class|batch|row|head|picture|shape|clip|image|item|part|process|device|mesh|group|block|query|layer|run"
    r"|epoch|model|task|pixel|channel|minute|second"
)
IDIOM = re.compile(rf"\b({COUNTED}) an? ({PLACES})\b")
#: A description that cannot be understood alone: its subject stands elsewhere.
SUBJECTLESS = re.compile(r"^\s+\w+: (Of|Its|Theirs|Likewise)\b")


def strange_idioms(root: Path) -> list[str]:
    """A description is read alone, in a tooltip or a line of help: "per level", and never without its subject."""
    return [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in sources(root / "hiergen")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if IDIOM.search(line) or SUBJECTLESS.search(line)
    ]


CHECKS = {
    strange_idioms: ("hiergen/nn/thing.py", '"""Blocks.\n\nArgs:\n    seed: Of all draws.\n"""\n'),
    stray_packages: ("tokenizers/__init__.py", ""),
    misplaced_tests: ("generators/test_it.py", ""),
    shadowing_names: ("demos/json.py", ""),
    main_blocks: ("hiergen/nn/thing.py", 'if __name__ == "__main__":\n    pass\n'),
    upward_imports: ("hiergen/nn/thing.py", "def f():\n    from hiergen.training import loop\n"),
    relative_imports: ("hiergen/nn/thing.py", "from . import blocks\n"),
    long_files: ("hiergen/nn/thing.py", "x = 1\n" * (MAX_LINES + 1)),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_repository_keeps_the_rule(check) -> None:
    assert check(ROOT) == []


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_rule_sees_a_planted_fault(check, tmp_path) -> None:
    name, text = CHECKS[check]
    for folder in ("hiergen", *PROGRAMS):
        (tmp_path / folder).mkdir()
    assert check(tmp_path) == []
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    assert len(check(tmp_path)) == 1


def test_tokenizers_and_generators_do_not_see_each_other(tmp_path) -> None:
    (tmp_path / "hiergen" / "tokenizers").mkdir(parents=True)
    (tmp_path / "hiergen" / "tokenizers" / "a.py").write_text("from hiergen.generators import base\n")
    assert upward_imports(tmp_path) == ["hiergen/tokenizers/a.py:1 (tokenizers) imports generators"]


def test_the_real_tokenizers_package_is_imported_from_the_root() -> None:
    """`python -c` puts the current folder first: the folder `tokenizers/` must not hide the installed package."""
    code = "import tokenizers; print(tokenizers.Tokenizer.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "Tokenizer", done.stderr


def test_a_folder_holds_one_subject() -> None:
    """At most `MOST_ENTRIES` files and folders; the package itself holds the packages that the design lists."""
    counts: dict[Path, set[str]] = {}
    for path in sources(ROOT / "hiergen"):
        inside = path.relative_to(ROOT / "hiergen").parts
        for depth in range(1, len(inside)):
            counts.setdefault(Path(*inside[:depth]), set()).add(inside[depth])
    full = {str(folder): len(names - {"__init__.py"}) for folder, names in counts.items()}
    assert {folder: count for folder, count in full.items() if count > MOST_ENTRIES} == {}


def test_import_is_light() -> None:
    code = "import sys, hiergen; hiergen.__all__; dir(hiergen); print([m for m in ('torch', 'diffusers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_public_name_exists() -> None:
    import hiergen

    for name in hiergen.__all__:
        assert getattr(hiergen, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hiergen.nothing


def test_every_folder_of_the_library_is_mirrored_by_tests() -> None:
    """The parts of a package are tested in a folder of their name, or in the package's own."""
    missing = []
    tests = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")]
    for folder in {path.parent for path in sources(ROOT / "hiergen")} - {ROOT / "hiergen"}:
        inside = folder.relative_to(ROOT / "hiergen")
        places = {inside, inside.parent} - {Path(".")}
        if any(p.name != "__init__.py" for p in folder.glob("*.py")) and not any(places & {*t.parents} for t in tests):
            missing.append(str(inside))
    assert missing == []
