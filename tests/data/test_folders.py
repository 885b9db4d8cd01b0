from __future__ import annotations

from pathlib import Path

from hiergen.data.folders import class_names


def test_the_class_is_the_first_folder() -> None:
    paths = [Path("set/a/1.png"), Path("set/b/deep/2.png"), Path("set/3.png")]
    assert class_names(paths, "set") == ["a", "b", ""]
