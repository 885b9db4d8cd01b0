"""The program that makes the packaged models: the command on a card is the one that trains such a model."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

import pytest

from hiergen.config import parse, to_json
from hiergen.quickstart.settings import QuickstartSettings, ShapesQuickstartSettings, VideoQuickstartSettings

PROGRAM = Path(__file__).resolve().parents[2] / "demos" / "ship_models.py"


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("ship_models", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (QuickstartSettings(out="x"), "`hiergen quickstart`, seed 0, 1 CPU thread (OMP_NUM_THREADS=1)"),
        (
            QuickstartSettings(tokenizer="hieratok-tiny", generator="flow-tiny", seed=3),
            "`hiergen quickstart --tokenizer hieratok-tiny --generator flow-tiny`, seed 3, 1 CPU thread (OMP_NUM_THREADS=1)",
        ),
        (
            ShapesQuickstartSettings(num_shapes=1024, num_workers=2),
            "`hiergen quickstart shapes --num-shapes 1024`, seed 0, 1 CPU thread (OMP_NUM_THREADS=1)",
        ),
        (
            VideoQuickstartSettings(samples_seen=9_000),
            "`hiergen quickstart video --samples-seen 9000`, seed 0, 1 CPU thread (OMP_NUM_THREADS=1)",
        ),
    ],
)
def test_the_command_names_what_is_not_the_default(program, settings, expected) -> None:
    stored = to_json(settings)
    said = program.command(stored, 1)
    assert said == expected
    _, _, *words = shlex.split(said.split("`")[1])
    if words and words[0] in ("shapes", "video"):
        words = words[1:]
    understood = to_json(parse(type(settings)(seed=settings.seed), words, prog="quickstart"))
    assert {k: v for k, v in understood.items() if k not in program.WITHOUT_EFFECT} == {
        k: v for k, v in stored.items() if k not in program.WITHOUT_EFFECT
    }
