"""What the README shows is true of this checkout: its commands exist, its paths exist, its example runs."""

from __future__ import annotations

import fnmatch
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hiergen.__main__ import VERBS
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pyramid import specs_to_json
from hiergen.registry import create, list_presets

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_every_verb_is_shown_and_every_shown_verb_exists() -> None:
    shown = set(re.findall(r"`hiergen ([a-z-]+)", README)) | set(re.findall(r"bin/hiergen ([a-z-]+)", README))
    assert shown == set(VERBS)


def test_every_link_and_picture_is_there() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []
    assert any(target.endswith(".png") for target in targets)


def test_every_preset_pattern_matches_something() -> None:
    rows = [line for line in README.splitlines() if line.startswith(("| tokenizer", "| generator"))]
    patterns = [pattern for row in rows for pattern in re.findall(r"`([a-z0-9-]+\*?)`", row.split("|")[3])]
    assert len(patterns) > 5
    assert [pattern for pattern in patterns if not fnmatch.filter(list_presets(), pattern)] == []


def test_every_recipe_that_is_named_exists() -> None:
    for path in re.findall(r"(?:tokenizers|generators)/\w+\.py", README):
        assert (ROOT / path).is_file()


def test_make_knows_both_commands() -> None:
    for target in re.findall(r"^make (\w+)", README, re.M):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_python_example_runs(tmp_path, monkeypatch, capsys) -> None:
    """On random weights, in a folder that looks as the quickstart leaves it."""
    tokenizer = create("restok-tiny").eval()
    generator = create("har-tiny", level_specs=specs_to_json(tokenizer.specs)).eval()
    ClassToImagePipeline(tokenizer=tokenizer, generator=generator).save_pretrained(tmp_path / "quickstart" / "pipeline")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        namespace: dict[str, Any] = {}
        exec(compile(block, "README.md", "exec"), namespace)
        assert not namespace["coarse"].requires_grad
    assert "torch.Size([1, 1])" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["make quickstart", "make test"])
def test_the_two_commands_are_on_the_first_screen(name) -> None:
    assert name in "\n".join(README.splitlines()[:16])
