"""Build the API reference from signatures and docstrings: one Markdown page a module, and an index.

python docs/build_reference.py --out site/reference
"""

import argparse
import ast
import importlib
import inspect
import itertools
import pkgutil
import re
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import hiergen
from hiergen.files import write_text

#: Modules that run on import or need what is not installed everywhere.
LEFT_OUT = {"hiergen.__main__"}
#: Sections of Google's docstrings, which become headings.
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Source", "Example")


def modules() -> list[ModuleType]:
    """Return every module of the package that can be imported here."""
    found = []
    for info in pkgutil.walk_packages(hiergen.__path__, "hiergen."):
        if info.name in LEFT_OUT or ".pretrained.models" in info.name:
            continue
        try:
            found.append(importlib.import_module(info.name))
        except ImportError as error:
            print(f"left out {info.name}: {error}")
    return found


def public(module: ModuleType) -> list[tuple[str, Any]]:
    """Return the classes and functions that a module defines for others, in the order of the file."""
    own = [
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        if inspect.isclass(value) or inspect.isfunction(value)
    ]
    return sorted(own, key=lambda pair: line_of(pair[1]))


def line_of(value: Any) -> int:
    try:
        return inspect.getsourcelines(inspect.unwrap(value))[1]
    except (OSError, TypeError):
        return 0


def signature(value: Any) -> str:
    """Return a signature without the noise of resolved annotations."""
    try:
        text = str(inspect.signature(value))
    except (ValueError, TypeError):
        return "(...)"
    return re.sub(r"<([\w.]+) object at 0x\w+>", r"\1", text.replace("'", ""))


def docstring(value: Any) -> str:
    """Return a docstring as Markdown: sections become bold, their entries a list."""
    lines, inside = [], False
    for line in (inspect.getdoc(value) or "").splitlines():
        head = line.rstrip(":")
        if line.endswith(":") and head in SECTIONS:
            lines += [f"**{head}**", ""]
            inside = head != "Example"
        elif inside and (entry := re.match(r"^    (\*{0,2}[\w.]+): (.*)$", line)):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        elif inside and line.startswith("        "):
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line.strip() if inside else line)
    return "\n".join(lines)


def fields(value: type) -> str:
    """Return the fields of a class that have a string below them as their description, as a list."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(value))).body
    except (OSError, TypeError):
        return ""
    pairs = itertools.pairwise(tree.body) if isinstance(tree, ast.ClassDef) else ()
    return "\n".join(
        f"- `{field.target.id}`: {' '.join(text.value.value.split())}"
        for field, text in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    )


def members(value: type) -> list[tuple[str, Any]]:
    """Return the public methods and properties that a class defines itself."""
    own = [(name, member) for name, member in vars(value).items() if not name.startswith("_")]
    return [
        pair
        for pair in own
        if inspect.isfunction(pair[1]) or isinstance(pair[1], (property, classmethod, staticmethod))
    ]


def page(module: ModuleType) -> str:
    """Return the page of a module."""
    parts = [f"# `{module.__name__}`", docstring(module)]
    for name, value in public(module):
        kind = "class " if inspect.isclass(value) else ""
        parts += [f"## {kind}`{name}`", f"```python\n{name}{signature(value)}\n```", docstring(value)]
        parts.append(fields(value) if inspect.isclass(value) else "")
        for member, what in members(value) if inspect.isclass(value) else ():
            target = getattr(what, "__func__", getattr(what, "fget", what))
            shown = "" if isinstance(what, property) else signature(target)
            parts += [f"### `{name}.{member}{shown}`", docstring(target)]
    return "\n\n".join(part for part in parts if part) + "\n"


def build(out: Path) -> list[Path]:
    """Write all pages and the index, and return them."""
    index, written = ["# API reference", "", "What `import hiergen` offers:", ""], []
    for name in hiergen.__all__:
        if name != "__version__":
            home = getattr(hiergen, name).__module__
            index.append(f"- `hiergen.{name}`: [{home}]({home}.md)")
    index += ["", "All modules:", ""]
    for module in modules():
        if public(module):
            written.append(out / f"{module.__name__}.md")
            write_text(written[-1], page(module))
            summary = (inspect.getdoc(module) or "").splitlines()[0]
            index.append(f"- [{module.__name__}]({module.__name__}.md): {summary}")
    write_text(out / "index.md", "\n".join(index) + "\n")
    return [out / "index.md", *written]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="site/reference")
    print(f"{len(build(Path(parser.parse_args().out)))} pages in {parser.parse_args().out}")


if __name__ == "__main__":
    main()
