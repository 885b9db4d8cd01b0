"""`hiergen recipes`: list the recipes that come with the package, show one, or copy one to edit."""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
from pathlib import Path

import tyro

from hiergen.checked import Checked
from hiergen.config import nearest, parse
from hiergen.telling import say_next

PACKAGE = Path(__file__).resolve().parent.parent
#: In the wheel recipes are data of the package; in a checkout they are where the wheel takes them from.
PLACE = PACKAGE / "recipes" if (PACKAGE / "recipes").is_dir() else PACKAGE.parent
FOLDERS = ("tokenizers", "generators")


@dataclasses.dataclass(frozen=True)
class RecipesSettings(Checked):
    """List the recipes that come with the package, show one, or copy one to edit. `hiergen train NAME` runs one.

    Attributes:
        name: Recipe to show, e.g. restok-tiny; by default all are listed.
        copy: Recipe to copy, e.g. restok-tiny.
        to: File that the copy is written to; by default NAME.py in the current folder.
    """

    name: tyro.conf.Positional[str] = ""
    copy: str = ""
    to: str = ""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a recipe says of itself.

    Attributes:
        path: File of the recipe.
        text: Docstring of the recipe, whose last line says what data, time and extra it needs.
    """

    path: Path
    text: str

    @property
    def trains(self) -> str:
        """The first sentence."""
        return re.split(r"(?<=[.:])\s", " ".join(self.text.split()), maxsplit=1)[0].rstrip(".:")

    def needs(self, entry: str) -> str:
        """Return what the recipe says under "Data", "Time" or "Extra"; "-" if it says nothing."""
        found = re.search(rf"\b{entry}: (.+?)\.(?:\s|$)", self.text)
        return found[1] if found else "-"


def recipes() -> dict[str, Recipe]:
    """Return the recipes that come with the package by name, tokenizers first."""
    paths = [path for folder in FOLDERS for path in sorted((PLACE / folder).glob("*.py"))]
    return {
        path.stem.replace("_", "-"): Recipe(path, ast.get_docstring(ast.parse(path.read_text())) or "")
        for path in paths
    }


def find_recipe(name: str) -> Path:
    """Return the file of a recipe: a path as it is, or the file of a recipe of the package by name ("restok-tiny").

    Raises:
        ValueError: If there is neither, with the nearest names.
    """
    if Path(name).is_file():
        return Path(name)
    known, asked = recipes(), Path(name).name.removesuffix(".py").replace("_", "-")
    is_name = "/" not in name and not name.endswith(".py")
    if is_name and asked in known:
        return known[asked].path
    hint = f"; the package has it: hiergen train {asked}" if asked in known else nearest(asked, known)
    raise ValueError(
        f"recipe {name!r} is neither a file nor a recipe of the package, which `hiergen recipes` lists{hint}"
    )


def main(args: list[str]) -> None:
    settings = parse(RecipesSettings(), args, prog="hiergen recipes")
    if settings.to and not settings.copy:
        raise ValueError(f"to is {settings.to!r}, but no recipe is copied: add --copy NAME")
    if settings.copy:
        _copy(settings.copy, settings.to)
    elif settings.name:
        path = find_recipe(settings.name)
        print(f"{path}\n\n{ast.get_docstring(ast.parse(path.read_text())) or ''}")
        say_next(f"hiergen train {settings.name} --dry-run")
    else:
        _list()


def _copy(name: str, to: str) -> None:
    from hiergen.files import atomic_path

    source = find_recipe(name)
    target = Path(to or source.name)
    if target.is_dir():
        target /= source.name
    if target.exists():
        raise ValueError(f"{str(target)!r} exists already; give another --to FILE, or delete it")
    with atomic_path(target) as temporary:
        temporary.write_bytes(source.read_bytes())
    print(f"wrote {target}")
    say_next(f"hiergen train {target} --dry-run")


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 300)
    for folder in FOLDERS:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in (folder, "trains", "data", "time", "extra"):
            table.add_column(column, no_wrap=column == folder)
        for name, recipe in recipes().items():
            if recipe.path.parent.name == folder:
                trains = recipe.trains.removeprefix("Train ")
                table.add_row(name, trains, *(recipe.needs(entry) for entry in ("Data", "Time", "Extra")))
        console.print(table, "")
    say_next("hiergen train NAME to run one, hiergen recipes --copy NAME to edit one")
