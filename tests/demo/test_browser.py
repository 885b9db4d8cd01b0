"""The demo in a real browser, at a desk and on a telephone: every tab is used, and what a person waits for must come."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
MISSING += ["selenium"] if importlib.util.find_spec("selenium") is None else []


@pytest.mark.skipif(bool(MISSING), reason=f"a browser to look with is not installed: {', '.join(MISSING)}")
@pytest.mark.parametrize(("window", "more"), [("desktop", []), ("mobile", ["--brief"])])
def test_every_tab_answers_a_person(server, window, more, tmp_path) -> None:
    """On a telephone the page is laid out in another way, and answers in the same: bad files and stops are tried at a desk alone."""
    command = [sys.executable, str(ROOT / "demos" / "browser_tour.py"), "--url", server.url, "--out", str(tmp_path)]
    login = ["--login", f"{server.name}:{server.password}", "--windows", window, "--patience", "300"]
    done = subprocess.run([*command, *login, *more], capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    pictures = sorted(tmp_path.glob("*.png"))
    assert {path.stem for path in pictures} >= {
        f"{window}-{tab}"
        for tab in ("start", "generate", "edit-painted", "edit", "reconstruct", "compare", "shapes", "video", "text")
    }
    for path in pictures:
        with Image.open(path) as shot:
            assert len(shot.convert("RGB").getcolors(2**24)) > 20, path
