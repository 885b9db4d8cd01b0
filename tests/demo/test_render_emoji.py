"""The program that renders the archive of emoji: which drawings it takes, in which order, and what it says of them."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import tarfile
import types
from pathlib import Path

import pytest
from PIL import Image

from hiergen.data.config import DataConfig
from hiergen.data.sources import open_captions, open_pictures

PROGRAM = Path(__file__).resolve().parents[2] / "demos" / "render_emoji.py"
#: A cat, drawn by all but one style, and a flag.
EMOJI = [
    {"unified": "1F408-FE0F", "name": "CAT", "short_name": "cat2", "category": "Animals", "subcategory": "mammal"},
    {"unified": "1F3C1", "name": None, "short_name": "flag_x", "category": "Flags", "subcategory": "flag"},
    {"unified": "2764-FE0F", "name": None, "short_name": "red_heart", "category": "Smileys", "subcategory": "heart"},
]


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("render_emoji", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pack(folder: Path, package: str, **files: object) -> None:
    with tarfile.open(folder / f"{package}-1.0.tgz", "w:gz") as archive:
        for name, content in files.items():
            data = json.dumps(content).encode()
            entry = tarfile.TarInfo(f"package/{name}.json")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


@pytest.fixture
def folder(tmp_path):
    pack(tmp_path, "emoji-datasource", emoji=EMOJI)
    heart = {"body": "heart", "height": 18}
    for package in ("iconify-json-twemoji", "iconify-json-noto"):
        icons = {"icons": {"cat": {"body": "cat"}, "heart": heart}, "aliases": {}, "width": 36, "height": 36}
        pack(tmp_path, package, icons=icons, chars={"1f408": "cat", "2764-fe0f": "heart", "1f3c1": "cat"})
    mirrored = {"icons": {"left": heart}, "aliases": {"heart": {"parent": "left", "hFlip": True}}}
    for package in ("iconify-json-fluent-emoji-flat", "iconify-json-fluent-emoji"):
        pack(tmp_path, package, icons={**mirrored, "width": 32, "height": 32}, chars={"2764": "heart"})
    return tmp_path


def test_the_archive_of_emoji(folder, program, monkeypatch) -> None:
    drawn = []

    def draw(svg_string: str, width: int, height: int) -> bytes:
        drawn.append(svg_string)
        buffer = io.BytesIO()
        Image.new("RGBA", (width, height), (255, 0, 0, 255)).save(buffer, "PNG")
        return buffer.getvalue()

    monkeypatch.setitem(sys.modules, "resvg_py", types.SimpleNamespace(svg_to_bytes=draw))
    monkeypatch.setattr(sys, "argv", ["render_emoji.py", str(folder), str(folder / "emoji.npz")])
    program.main()
    config = DataConfig(source=f"npz:{folder / 'emoji.npz'}", label_column="labels+styles")
    pictures = open_pictures(config)
    assert pictures.names == (
        *("twemoji/cat2", "twemoji/red_heart", "noto/cat2", "noto/red_heart"),
        *("fluent-flat/red_heart", "fluent/red_heart"),
    )
    assert pictures.classes[pictures.labels[0]] == "Animals/mammal | twemoji"
    assert open_captions(config)[:2] == (("cat",), ("red heart",))
    picture = pictures.read(0)
    assert picture.size == (64, 64)
    assert picture.getpixel((1, 1)) == (255, 255, 255)
    assert picture.getpixel((2, 2)) == (255, 0, 0)
    assert 'viewBox="0 0 36 18">heart' in drawn[1]
    assert 'viewBox="0 0 32 18"><g transform="translate(32 0) scale(-1 1)">heart' in drawn[4]


def test_a_package_that_is_not_there(folder, program) -> None:
    (folder / "iconify-json-noto-1.0.tgz").unlink()
    with pytest.raises(SystemExit, match=r"holds 0 files iconify-json-noto-VERSION\.tgz, expected 1"):
        program.read(folder, "iconify-json-noto", "icons.json")
