from __future__ import annotations

import pytest
from PIL import Image

from hiergen.data.images import files as module
from hiergen.data.images.files import list_images, read_image


def test_bad_pictures_are_named(tmp_path, monkeypatch) -> None:
    whole = tmp_path / "whole.png"
    Image.new("RGB", (64, 64)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:60])
    (tmp_path / "text.png").write_text("hello")
    for name in ("cut.png", "text.png", "missing.png"):
        with pytest.raises(ValueError, match=f"image '.*{name}' cannot be read"):
            read_image(tmp_path / name)
    monkeypatch.setattr(module, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="64x64 pixels, at most 1,000 are read"):
        read_image(whole)


def test_pictures_are_listed_and_their_absence_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"image folder '.*nowhere' does not exist"):
        list_images(tmp_path / "nowhere")
    for name in ("b.PNG", "a/c.jpg", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_images(tmp_path) == [tmp_path / "a/c.jpg", tmp_path / "b.PNG"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"image folder '.*empty' holds no picture \(\.png, "):
        list_images(tmp_path / "empty")
