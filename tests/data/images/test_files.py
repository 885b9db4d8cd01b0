from __future__ import annotations

import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hiergen
from hiergen.data.config import DataConfig
from hiergen.data.images import files as module
from hiergen.data.images.files import SUFFIXES, image_size, list_images, read_image
from hiergen.data.images.on_disk import FolderPictures
from hiergen.data.sources import open_images

#: Pillow's name of what a file with a suffix holds, where it is another.
KINDS = {"jpg": "jpeg", "jpe": "jpeg", "jfif": "jpeg", "apng": "png", "tif": "tiff"} | dict.fromkeys(
    ("pgm", "pbm", "pnm", "pfm"), "ppm"
)


def save(path: Path, shade: int = 200) -> Path:
    kind = path.suffix[1:].lower()
    shade = 255 if kind == "pbm" else shade
    picture = Image.new("RGB", (20, 16), (shade, shade, shade))
    picture = picture.convert({"pbm": "1", "pgm": "L", "pfm": "F"}.get(kind, "RGB"))
    if kind == "pfm":
        picture = picture.point(lambda value: value * (1 / 255))
    picture.save(path, KINDS.get(kind, kind))
    return path


def test_bad_pictures_are_named(tmp_path, monkeypatch) -> None:
    whole = tmp_path / "whole.png"
    Image.new("RGB", (64, 64)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:60])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "nothing")
    # Opening a pipe that nobody writes to would wait for ever.
    os.mkfifo(tmp_path / "pipe.png")
    for name, why in {
        "cut.png": "",
        "text.png": "it is no PNG, JPEG, ",
        "missing.png": "it does not exist",
        "link.png": "it does not exist",
        "folder.png": "it is no regular file",
        "pipe.png": "it is no regular file",
    }.items():
        with pytest.raises(ValueError, match=f"image '.*{name}' cannot be read: {why}"):
            read_image(tmp_path / name)
    monkeypatch.setattr(module, "MAX_PIXELS", 1000)
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match="64x64 pixels, at most 1,000 are read"):
            read(whole)


@pytest.mark.parametrize("kind", ["EPS", "ICO", "TGA", "PCX", "SGI", "IM", "MSP", "PDF"])
def test_formats_outside_the_list_are_refused_whatever_their_suffix(tmp_path, kind) -> None:
    path = tmp_path / "a.png"
    Image.new("1" if kind == "MSP" else "RGB", (16, 16)).save(path, kind)
    with pytest.raises(ValueError, match=r"image '.*a\.png' cannot be read: it is no PNG, JPEG, "):
        read_image(path)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path) -> None:
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000)))]
    data = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    with pytest.raises(ValueError, match=r"image '.*a\.png' cannot be read: too many pixels, at most 64,000,000"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_read_from_folders_in_any_case(tmp_path, suffix, caplog) -> None:
    (tmp_path / "cats").mkdir()
    save(tmp_path / "cats" / f"a{suffix}")
    save(tmp_path / "cats" / f"b{suffix.upper()}")
    shade = 255 if suffix == ".pbm" else 200
    for in_memory in (True, False):
        data = open_images(DataConfig(source=str(tmp_path), size=16, in_memory=in_memory))
        image = data.batch([(0, 0), (1, 0)], seed=0)["image"]
        assert ((image + 1) * 127.5).round().int().unique().tolist() == pytest.approx([shade], abs=1)
    assert not caplog.text


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


def test_classes_count_and_their_order_is_part_of_the_fingerprint(tmp_path) -> None:
    for name, shade in (("10", 10), ("2", 20)):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "a.png", shade)
    source = FolderPictures(tmp_path)
    assert source.classes == ("2", "10")
    assert [source.read(index).getpixel((0, 0))[0] for index in range(2)] == [10, 20]
    assert source.labels == [1, 0]
    # Digits of what earlier versions numbered 10 = 0, 2 = 1.
    sizes = [(tmp_path / name).stat().st_size for name in ("10/a.png", "2/a.png")]
    assert source.fingerprint != digits(f"10/a.png\0{sizes[0]}\x002/a.png\0{sizes[1]}\0")
    (tmp_path / "10").rename(tmp_path / "1")
    assert FolderPictures(tmp_path).fingerprint == digits(f"1/a.png\0{sizes[0]}\x002/a.png\0{sizes[1]}\0")


def digits(listing: str) -> str:
    import hashlib

    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def test_a_link_to_nothing_is_a_broken_picture_among_others(tmp_path) -> None:
    save(tmp_path / "a.png", 10)
    (tmp_path / "b.png").symlink_to(tmp_path / "nothing")
    data = open_images(DataConfig(source=str(tmp_path), size=16, in_memory=False))
    assert data.batch([(0, 0), (1, 0)], seed=0)["is_substitute"].tolist() == [False, True]
    assert "b.png' cannot be read: it does not exist" in data.broken[1]


def test_pictures_are_opened_in_one_place() -> None:
    root = Path(hiergen.__file__).parent
    code = {path.relative_to(root).as_posix(): path.read_text() for path in sorted(root.rglob("*.py"))}
    # Not what a docstring or a card shows a reader.
    shown = re.compile(r"(pipe|processor)\((PIL\.)?Image\.open\(")
    opening = {name for name, text in code.items() if re.search(r"\bImage\.open\(|imread", shown.sub("", text))}
    # The others read what they have just drawn.
    assert opening == {"data/images/files.py", "demo/stage.py", "demo/tabs/compare.py", "demo/tabs/video.py"}


def test_plain_pictures_keep_every_pixel(tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    for suffix in (".png", ".bmp", ".tif", ".ppm"):
        Image.fromarray(pixels).save(tmp_path / f"a{suffix}")
        assert np.array_equal(np.asarray(read_image(tmp_path / f"a{suffix}")), pixels)
