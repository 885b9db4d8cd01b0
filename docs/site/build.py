"""Build the documentation as a site: the repository's pages, its notebooks, and the API reference from the docstrings.

python docs/site/build.py --out site

The pages are gathered where they stand to each other as in the repository, so that every link is one of both. A warning is an error.
"""

import argparse
import importlib.util
import json
import shutil
from pathlib import Path

from hiergen.environment import require
from hiergen.files import write_text

ROOT = Path(__file__).resolve().parents[2]
#: Folders of the repository whose Markdown and pictures are part of the site.
FOLDERS = ("docs", "tokenizers", "generators", "eval", "demos", "hiergen/video", "hiergen/kernels")
SUFFIXES = {".md", ".png", ".gif", ".webp"}


def gather(pages: Path) -> None:
    """Copy everything that the site shows to a folder, which is emptied first."""
    shutil.rmtree(pages, ignore_errors=True)
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    for path in (*ROOT.glob("*.md"), *found):
        target = pages / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            # A notebook is a page of the site.
            write_text(target, path.read_text().replace(".ipynb)", ".md)"))
        else:
            shutil.copyfile(path, target)
    for path in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        write_text(pages / "docs" / "notebooks" / f"{path.stem}.md", notebook_page(path))
    shutil.copyfile(Path(__file__).with_name("iframe-worker.js"), pages / "iframe-worker.js")
    spec = importlib.util.spec_from_file_location("build_reference", ROOT / "docs" / "build_reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    reference.build(pages / "reference")


def notebook_page(path: Path) -> str:
    """Return a notebook as Markdown: its text, and its code in blocks."""
    cells = json.loads(path.read_text())["cells"]
    shown = ["".join(cell["source"]) for cell in cells]
    parts = [
        text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
        for cell, text in zip(cells, shown, strict=True)
    ]
    return "\n\n".join(parts) + "\n"


def build(out: Path) -> Path:
    """Write the site and return the folder of its pages of HTML.

    Raises:
        ImportError: If mkdocs-material is not installed.
        mkdocs.exceptions.Abort: If there was a warning, e.g. of a link that leads nowhere.
    """
    require("material", "docs", "the site of the documentation")
    from mkdocs.commands.build import build as build_pages
    from mkdocs.config import load_config

    pages = out.resolve() / "pages"
    gather(pages)
    config = load_config(
        str(Path(__file__).with_name("mkdocs.yml")),
        docs_dir=str(pages),
        site_dir=str(out.resolve() / "html"),
        strict=True,
    )
    config.plugins.on_startup(command="build", dirty=False)
    try:
        build_pages(config)
    finally:
        config.plugins.on_shutdown()
    return out.resolve() / "html"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="site")
    print(f"open {build(Path(parser.parse_args().out)) / 'index.html'}")


if __name__ == "__main__":
    main()
