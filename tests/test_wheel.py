"""The wheel in an environment of its own with the dependencies of the core alone: what a person has after `pip install hiergen`."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def core_distributions() -> set[str]:
    """Return the names of the distributions that `pip install hiergen` brings, as far as they are installed here."""
    text = (ROOT / "pyproject.toml").read_text()
    asked = re.findall(r'"(.+?)"', re.search(r"\ndependencies = \[(.+?)\n\]", text, re.S)[1])
    found: set[str] = set()
    while asked:
        requirement = Requirement(asked.pop())
        extras = requirement.extras or {""}
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            distribution = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        name = distribution.metadata["Name"].lower()
        if name not in found:
            found.add(name)
            for line in distribution.requires or []:
                inner = Requirement(line)
                if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                    inner.marker = None
                    asked.append(str(inner))
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of an environment that holds the built wheel, and links to the packages that the core needs."""
    builder = pytest.importorskip("hatchling.builders.wheel", reason="`make install` brings hatchling")
    root = tmp_path_factory.mktemp("wheel")
    (wheel,) = builder.WheelBuilder(str(ROOT)).build(directory=str(root), versions=["standard"])
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "venv"], check=True)
    (packages,) = (root / "venv").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    for name in core_distributions():
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            source = Path(str(distribution.locate_file(top)))
            if source.exists() and not (packages / top).exists():
                (packages / top).symlink_to(source)
    return root / "venv" / "bin" / "python"


def run(python: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), "-m", "hiergen", *words]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False)


def test_the_core_alone_runs_the_quickstart_to_its_pictures(python, tmp_path) -> None:
    done = run(python, tmp_path, "quickstart", "--samples-seen", "64", "--num-generated", "80", "--out", "q")
    assert done.returncode == 0, done.stderr
    for name in ("reconstruction.png", "samples.png", "curves.png", "pipeline/model_index.json"):
        assert (tmp_path / "q" / name).is_file(), name
    page = (tmp_path / "q" / "report.md").read_text()
    assert "precision and recall are left out: a kernel distance needs torch-fidelity" in page
    assert done.stdout.splitlines()[-1] == "next: hiergen demo q/pipeline"
    assert "of 80 generated images as the digit asked for" in done.stderr


def test_recipes_of_the_wheel_run_by_name(python, tmp_path) -> None:
    done = run(python, tmp_path, "train", "restok-tiny", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "1,439,763 parameters" in done.stdout
    listed = run(python, tmp_path, "recipes")
    assert listed.returncode == 0, listed.stderr
    assert "restok-tiny" in listed.stdout
    assert "har-tiny" in listed.stdout


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        ("demo", "gradio", "demo"),
        ("quickstart shapes", "trimesh", "shapes"),
        ("quickstart video", "PyAV", "video"),
        ("generate --pipeline shapes-by-class", "trimesh", "shapes"),
        ("generate --pipeline clips", "PyAV", "video"),
    ],
)
def test_a_missing_extra_is_told_before_anything_is_loaded(python, tmp_path, words, package, extra) -> None:
    program = "import sys; from hiergen.__main__ import main; code = main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(code)"
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-c", program, *words.split()], cwd=tmp_path, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert re.search(rf'needs {package}: pip install "hiergen\[{extra}\]"\n$', done.stderr), done.stderr
