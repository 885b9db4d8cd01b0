"""The site of the documentation: built without a warning, read without a network, with every public name in its reference."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import mkdocs.exceptions
import pytest

import hiergen

ROOT = Path(__file__).resolve().parents[2]
#: What makes a browser fetch something by itself.
FETCHED = re.compile(r"""<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^"'\s>]+""")


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_site", ROOT / "docs" / "site" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(program, tmp_path_factory) -> Path:
    """The folder of the site, whose building a warning would have ended."""
    out = tmp_path_factory.mktemp("site")
    assert program.build(out) == out / "html"
    return out


def test_the_site_has_every_page_and_fetches_nothing(site) -> None:
    html = site / "html"
    for page in (site / "pages").rglob("*.md"):
        path = html / page.relative_to(site / "pages").with_suffix(".html")
        assert path.is_file() or (page.name == "README.md" and path.with_name("index.html").is_file()), page
    fetched = {found for page in html.rglob("*.html") for found in FETCHED.findall(page.read_text())}
    assert fetched == set()


def test_the_site_is_searched_without_a_server(site) -> None:
    index = (site / "html" / "search" / "search_index.js").read_text()
    assert index.startswith("var __index = ")
    places = {entry["location"].partition("#")[0] for entry in json.loads(index.partition("=")[2])["docs"]}
    assert {"index.html", "docs/guides/own_clips.html", "reference/hiergen.pyramid.html"} <= places
    assert 'src="iframe-worker.js"' in (site / "html" / "index.html").read_text()
    assert "window.Worker" in (site / "html" / "iframe-worker.js").read_text()


def test_every_guide_and_notebook_is_in_the_navigation() -> None:
    shown = (ROOT / "docs" / "site" / "mkdocs.yml").read_text()
    pages = [*(ROOT / "docs" / "guides").rglob("*.md"), *(ROOT / "docs" / "notebooks").glob("*.ipynb")]
    pages += (ROOT / "docs" / "results").glob("*.md")
    missing = [page.name for page in pages if str(page.relative_to(ROOT).with_suffix(".md")) not in shown]
    assert missing == []


def test_a_warning_ends_the_building(program, tmp_path, monkeypatch) -> None:
    def one_page(pages: Path) -> None:
        pages.mkdir()
        (pages / "README.md").write_text("[nowhere](nowhere.md)\n")

    monkeypatch.setattr(program, "gather", one_page)
    with pytest.raises(mkdocs.exceptions.Abort, match="warnings in strict mode"):
        program.build(tmp_path)


def test_the_reference_is_built_from_the_docstrings(site) -> None:
    reference = site / "pages" / "reference"
    pages = {path.name: path.read_text() for path in reference.glob("*.md")}
    assert len(pages) > 100
    for name in hiergen.__all__:
        if name != "__version__":
            module = getattr(hiergen, name).__module__
            assert f"`hiergen.{name}`: [{module}]({module}.md)" in pages["index.md"]
            assert f"`{name}`" in pages[f"{module}.md"]
    assert "- `num_tokens`: Tokens of the level." in pages["hiergen.levels.md"]
    assert "- `code_dim`: Channels of a code." in pages["hiergen.tokenizers.restok.config.md"]
    assert "### `TokenPyramid.prefix(self, num_levels: int) -> TokenPyramid`" in pages["hiergen.pyramid.md"]
    assert not any("object at 0x" in text for text in pages.values())
