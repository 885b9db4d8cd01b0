"""Pictures of any mode as 8 bits per color: deep grey values scaled, held upright, what is transparent on white.

Profiles of colors are left alone: values are read as they are stored, and CMYK by Pillow's plain formula.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image

#: What lies under transparency, wherever a picture is read.
BACKGROUND = "white"
#: How a picture is turned upright, by its EXIF orientation; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: What 1 of a grey value as stored becomes in 8 bits, by Pillow's name of how it is stored.
_GREY_STEPS = {"L;2": 85, "L;4": 17}
_WHITE_IS_ZERO = 0


def to_color(picture: Image.Image, mode: Literal["RGB", "RGBA"] = "RGB") -> Image.Image:
    """Return a copy of a picture of any mode with 8 bits per color, upright by its EXIF orientation.

    Grey values of 16 bits keep their high 8 bits, those of 12 bits too; 32-bit integers must be values of 16 bits; floats run from 0
    (black) to 1 (white).

    Args:
        picture: The picture.
        mode: "RGB" puts what is transparent on `BACKGROUND`, "RGBA" keeps transparency.

    Raises:
        ValueError: If values lie outside these ranges, or colors are of a space that has no plain formula (LAB).
    """
    # Known only before the pixels are loaded.
    stored = _stored(picture)
    picture.load()
    turn = _TURNS.get(orientation(picture))
    result = _colors(picture, stored)
    if turn is not None:
        result = result.transpose(turn)
    if mode == "RGBA":
        result = result.convert("RGBA")
    elif result.mode == "RGBA":
        result = Image.alpha_composite(Image.new("RGBA", result.size, BACKGROUND), result).convert("RGB")
    # Notes that were acted upon must not be acted upon again.
    result.info = {}
    return result


def orientation(picture: Image.Image) -> int:
    """Return a picture's EXIF orientation, 1 to 8; 1 (upright) if there is none."""
    try:
        found = picture.getexif().get(ExifTags.Base.Orientation)
    # Damaged notes raise whatever their parser stumbles over, and are no reason to lose a picture.
    except Exception:
        return 1
    return found if found in _TURNS else 1


def _stored(picture: Image.Image) -> str:
    """Return Pillow's name of how the pixels are stored in the file, "" if it is not known."""
    tiles = getattr(picture, "tile", None)
    args = tiles[0][3] if tiles else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _colors(picture: Image.Image, stored: str) -> Image.Image:
    """Return a copy in RGB, or in RGBA if anything may be transparent."""
    key = picture.info.get("transparency")
    if picture.mode == "LAB":
        raise ValueError("its colors are LAB, expected grey, RGB, CMYK or YCbCr")
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        values = np.asarray(picture)
        grey = Image.fromarray(_eight_bits(values, picture, stored)).convert("RGB")
        return _keyed(grey, values == key) if isinstance(key, int) else grey
    if picture.mode in ("1", "L") and isinstance(key, int):
        grey = picture.convert("L")
        grey.info = {}
        return _keyed(grey.convert("RGB"), np.asarray(grey) == key * _GREY_STEPS.get(stored, 1))
    if picture.mode == "RGB" and isinstance(key, tuple):
        # Of 16 bits per color Pillow hands over the high ones.
        key = tuple(value >> 8 for value in key) if stored == "RGB;16B" else key
        return _keyed(picture.convert("RGB"), (np.asarray(picture) == key).all(axis=-1))
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.mode not in ("1", "L", "RGB") and picture.has_transparency_data:
        return picture.convert("RGBA")
    return picture.convert("RGB")


def _keyed(picture: Image.Image, is_clear: Any) -> Image.Image:
    picture.info = {}
    picture.putalpha(Image.fromarray(np.where(is_clear, np.uint8(0), np.uint8(255))))
    return picture


def _eight_bits(values: np.ndarray, picture: Image.Image, stored: str) -> np.ndarray:
    if values.dtype.kind == "f":
        least, most = float(values.min()), float(values.max())
        # Written so that NaN is refused too.
        if not (least >= 0 and most <= 1):
            raise ValueError(f"its values are floats from {least:g} to {most:g}, expected 0 (black) to 1 (white)")
        grey = np.rint(values * 255)
    else:
        least, most = int(values.min()), int(values.max())
        if least < 0 or most > 65_535:
            raise ValueError(f"its values run from {least} to {most}, expected 0 (black) to 65,535 (white)")
        grey = values >> (4 if stored == "I;12" else 8)
    grey = grey.astype(np.uint8)
    # Pillow turns 8 bits of this kind around, no deeper ones.
    tags = getattr(picture, "tag_v2", {})
    is_negative = tags.get(ExifTags.Base.PhotometricInterpretation) == _WHITE_IS_ZERO
    return 255 - grey if is_negative else grey
