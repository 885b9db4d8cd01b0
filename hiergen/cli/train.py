"""`hiergen train RECIPE [--field value ...]`: run a recipe; the same command again resumes it."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from typing import TYPE_CHECKING

from hiergen.cli.recipes import find_recipe

if TYPE_CHECKING:
    from hiergen.training.config import TrainConfig


def main(args: list[str]) -> None:
    if not args or args[0].startswith("-"):
        print("usage: hiergen train RECIPE [--dry-run] [--config FILE] [--field value ...]", file=sys.stderr)
        raise SystemExit(0 if args[:1] in (["-h"], ["--help"]) else 2)
    path, *overrides = args
    config = load_recipe(path)
    from hiergen.training.run import run_recipe

    run_recipe(config, overrides, name=f"hiergen train {path}")


def load_recipe(path: str) -> TrainConfig:
    """Return what the function `recipe` of a Python file returns.

    Raises:
        ValueError: If the file is missing, fails, or defines no `recipe() -> TrainConfig`.
    """
    file = find_recipe(path)
    from hiergen.training.config import TrainConfig

    spec = importlib.util.spec_from_file_location(f"hiergen_recipe_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"recipe {path!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses of a recipe look their module up by name.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        recipe = getattr(module, "recipe", None)
        config = recipe() if callable(recipe) else None
    except Exception as error:
        lines = [entry.lineno for entry in traceback.extract_tb(error.__traceback__) if entry.filename == str(file)]
        place = f" in line {lines[-1]}" if lines else ""
        raise ValueError(f"recipe {path!r} failed{place}: {type(error).__name__}: {error}") from error
    if not isinstance(config, TrainConfig):
        raise ValueError(f"recipe {path!r} must define a function recipe() that returns a TrainConfig")
    return config
