"""What is in the wheel and the sdist: the library, its models and their cards; no tests, programs or pictures."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hiergen
from hiergen.pretrained.packaged import packaged_models

ROOT = Path(__file__).resolve().parent.parent
#: Folders of recipes, which the wheel holds as data.
RECIPES = ("tokenizers/", "generators/")


def files(kind: str) -> set[str]:
    pytest.importorskip("hatchling", reason="what is packed is hatchling's to say; `make install` brings it")
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    builder = {"wheel": WheelBuilder, "sdist": SdistBuilder}[kind](str(ROOT))
    return {str(Path(file.path).relative_to(ROOT)) for file in builder.recurse_included_files()}


def test_the_wheel_holds_the_library_and_its_models_and_nothing_else() -> None:
    packed = files("wheel")
    assert all(name.startswith(("hiergen/", "tokenizers/", "generators/")) for name in packed)
    assert {Path(name).suffix for name in packed} == {
        ".py",
        ".md",
        ".json",
        ".safetensors",
        ".typed",
        ".css",
        ".png",
        ".webp",
        ".npz",
        ".txt",
    }
    recipes = {str(path.relative_to(ROOT)) for folder in RECIPES for path in (ROOT / folder).glob("*.py")}
    assert {name for name in packed if name.startswith(RECIPES) and name.endswith(".py")} == recipes
    for folder in packaged_models():
        is_pipeline = (folder / "model_index.json").is_file()
        for part in ("README.md", "demo.json", *(["model_index.json"] if is_pipeline else [])):
            assert str((folder / part).relative_to(ROOT)) in packed
        for part in ("tokenizer", "generator") if is_pipeline else (".",):
            for file in ("config.json", "diffusion_pytorch_model.safetensors"):
                assert str((folder / part / file).relative_to(ROOT)) in packed
    assert "hiergen/data/embedded/emoji_32.npz" in packed
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "hiergen").rglob("*.py")}
    assert modules <= packed


def test_the_sdist_holds_what_the_wheel_is_built_from() -> None:
    packed = files("sdist")
    assert files("wheel") <= packed
    beside = {name for name in packed if not name.startswith(("hiergen/", *RECIPES))}
    assert beside == {"README.md", "LICENSE", "CHANGELOG.md"}


def test_the_models_of_the_package_stay_small() -> None:
    sizes = {
        folder.name: sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) for folder in packaged_models()
    }
    assert set(sizes) == {"clips", "digits-1d", "digits-2d", "emoji", "emoji-clips", "photographs", "shapes-by-class"}
    assert sum(sizes.values()) < 40 * 2**20, sizes


def test_type_checkers_read_the_names_that_the_package_gives() -> None:
    (block,) = [node for node in ast.parse(Path(hiergen.__file__).read_text()).body if _is_for_checkers(node)]
    named = {alias.asname: line.module for line in block.body for alias in line.names}
    assert all(alias.name == alias.asname for line in block.body for alias in line.names)
    assert named == hiergen._PUBLIC
    assert dir(hiergen) == sorted(hiergen.__all__)


def _is_for_checkers(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_mypy_finds_a_misspelt_name(tmp_path) -> None:
    """Other modules are passed over: what is tested is which names the package has."""
    (tmp_path / "use.py").write_text(
        "import hiergen\nfrom hiergen import LevelAR, LevelARR\n\nhiergen.ResTok\nhiergen.ResTokk\n"
    )
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file=",
        "--follow-imports=skip",
        f"--cache-dir={tmp_path / 'cache'}",
    ]
    done = subprocess.run(
        [*command, str(tmp_path / "use.py"), hiergen.__file__],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    errors = [line.partition("use.py:")[2] for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 2, done.stdout
    assert errors[0].startswith('2: error: Module "hiergen" has no attribute "LevelARR"')
    assert errors[1].startswith('5: error: Module has no attribute "ResTokk"')
