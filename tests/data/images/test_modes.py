from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from hiergen.data.images.files import image_size, read_image
from hiergen.data.images.modes import to_color
from hiergen.data.images.pixels import on_white_square

#: EXIF orientation -> how an upright array lies in the file.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}
RAMP = np.arange(256, dtype=np.int64).reshape(8, 32)


def read(picture: Image.Image, kind: str, **options) -> np.ndarray:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return np.asarray(read_image("x", data=file.getvalue()))


@pytest.mark.parametrize("turn", STORED)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_orientation_is_turned_upright_once(tmp_path, kind, options, turn, channels) -> None:
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :16], upright[16:, :16], upright[16:, 32:] = 255, 128, 60
    exif = Image.Exif()
    exif[274] = turn
    stored = np.ascontiguousarray(STORED[turn](upright))
    path = tmp_path / "x"
    Image.fromarray(stored[..., 0] if channels == 1 else stored).save(path, kind, exif=exif, **options)
    picture = read_image(path)
    assert picture.size == image_size(path) == (48, 32)
    assert np.abs(np.asarray(picture).astype(int) - upright).max() <= (4 if kind == "JPEG" else 0)
    # Whoever asks again, turns nothing.
    assert np.array_equal(np.asarray(to_color(picture)), np.asarray(picture))


def test_damaged_notes_on_orientation_are_passed_over(tmp_path, monkeypatch) -> None:
    exif = Image.Exif()
    exif[274] = 77
    Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == image_size(tmp_path / "a.jpg") == (4, 2)

    def stumble(_: Image.Image) -> None:
        raise struct.error("unpack requires a buffer of 2 bytes")

    monkeypatch.setattr(Image.Image, "getexif", stumble)
    assert read_image(tmp_path / "a.jpg").size == (4, 2)


@pytest.mark.parametrize(
    ("kind", "pixels", "options"),
    [
        ("PNG", (RAMP * 257).astype("<u2"), {}),
        ("PNG", (RAMP * 256 + 255).astype("<u2"), {}),
        ("TIFF", (RAMP * 257).astype("<u2"), {}),
        ("TIFF", (RAMP * 257).astype(">u2"), {}),
        ("TIFF", (RAMP * 257).astype(">u2"), {"compression": "tiff_lzw"}),
        ("TIFF", (RAMP * 257).astype(np.int32), {}),
        ("TIFF", (RAMP / 255).astype(np.float32), {}),
        ("PPM", (RAMP * 257).astype(np.int32), {}),
        ("PPM", (RAMP / 255).astype(np.float32), {}),
    ],
    ids=["png", "png, low bits", "little endian", "big endian", "packed", "32 bits", "float", "pgm", "pfm"],
)
def test_deep_grays_keep_all_shades(kind, pixels, options) -> None:
    found = read(Image.fromarray(pixels), kind, **options)
    assert np.array_equal(found, np.repeat(RAMP[..., None], 3, -1))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.array([[0, 65_536]], np.int32), "values run from 0 to 65536, expected 0 .black. to 65,535 .white."),
        (np.array([[-1, 9]], np.int32), "values run from -1 to 9"),
        (np.array([[0, 255]], np.float32), "values are floats from 0 to 255, expected 0 .black. to 1 .white."),
        (np.array([[0, np.nan]], np.float32), "values are floats from nan to nan"),
    ],
)
def test_values_that_no_rule_covers_are_refused(pixels, message) -> None:
    with pytest.raises(ValueError, match=f"image 'x' cannot be read: its {message}"):
        read(Image.fromarray(pixels), "TIFF")


def test_colors_without_a_plain_formula_are_refused() -> None:
    with pytest.raises(ValueError, match="image 'x' cannot be read: its colors are LAB, expected grey"):
        read(Image.new("LAB", (4, 4)), "TIFF")


def clear_left(mode: str) -> Image.Image:
    """A picture whose left half is clear over black, its right half opaque red or gray."""
    picture = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    picture.paste((200, 0, 0, 255), (2, 0, 4, 2))
    return picture.convert(mode)


def palette(transparency: int | bytes) -> tuple[Image.Image, dict]:
    picture = Image.new("P", (4, 2), 0)
    picture.paste(1, (2, 0, 4, 2))
    picture.putpalette([0, 0, 0, 200, 0, 0])
    return picture, {"transparency": transparency}


def keyed(mode: str, clear, opaque) -> tuple[Image.Image, dict]:
    picture = Image.new(mode, (4, 2), clear)
    picture.paste(opaque, (2, 0, 4, 2))
    return picture, {"transparency": int(bool(clear)) if mode == "1" else clear}


@pytest.mark.parametrize(
    ("kind", "picture", "options"),
    [
        ("PNG", clear_left("RGBA"), {}),
        ("WEBP", clear_left("RGBA"), {"lossless": True, "exact": True}),
        ("TIFF", clear_left("RGBA"), {}),
        ("PNG", clear_left("LA"), {}),
        ("TIFF", clear_left("LA"), {}),
        ("PNG", *palette(0)),
        ("PNG", *palette(b"\0\xff")),
        ("GIF", *palette(0)),
        ("PNG", *keyed("RGB", (0, 0, 1), (200, 0, 0))),
        ("PNG", *keyed("L", 7, 60)),
        ("PNG", *keyed("1", 0, 1)),
        ("PNG", *keyed("I;16", 300, 50_000)),
    ],
)
def test_what_is_transparent_lies_on_white_everywhere(kind, picture, options) -> None:
    found = read(picture, kind, **options)
    opaque = np.asarray(to_color(picture))[:, 2:]
    assert (found[:, :2] == 255).all()
    assert np.array_equal(found[:, 2:], opaque)


@pytest.mark.parametrize("mode", ["La", "LA", "PA", "RGBa", "RGBA"])
def test_pictures_from_memory_follow_the_same_rules(mode) -> None:
    source = clear_left("RGBA").convert("LA").convert(mode) if mode == "La" else clear_left(mode)
    found = np.asarray(to_color(source))
    assert (found[:, :2] == 255).all()
    assert found[0, 3].max() < 255
    assert np.array_equal(np.asarray(on_white_square(source))[1:3], found)
    assert source.mode == mode


def test_ink_is_read_as_ink() -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 55))
    for kind, options in (("JPEG", {"quality": 100}), ("TIFF", {})):
        assert np.abs(read(ink, kind, **options).astype(int) - [200, 0, 0]).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_of_several_pictures_the_first_is_read(kind) -> None:
    first, second = Image.new("RGB", (8, 8), (254, 0, 0)), Image.new("RGB", (8, 8), "blue")
    options = {"lossless": True} if kind == "WEBP" else {}
    found = read(first, kind, save_all=True, append_images=[second], **options)
    assert np.abs(found.astype(int) - [254, 0, 0]).max() <= 1
