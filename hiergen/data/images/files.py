"""Image files: reading one that nobody vouches for, and listing those below a folder. Which pixels it becomes is `pixels`."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError

from hiergen.data.folders import list_files

#: Larger pictures are refused: decoding is a known way to exhaust memory.
MAX_PIXELS = 64_000_000
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
#: Formats that a picture may have, whatever its suffix. Pillow knows more, some of which run other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")


def read_image(
    path: str | Path, *, data: bytes | None = None, max_pixels: int | None = None, mode: Literal["RGB", "RGBA"] = "RGB"
) -> Image.Image:
    """Return a picture as a PIL image, wholly decoded.

    Args:
        path: The file, or what `data` is called in errors.
        data: The bytes of an image file, in place of reading one.
        max_pixels: Larger pictures are refused, before they are decoded; None for `MAX_PIXELS`.
        mode: "RGB" drops what a picture says about transparency, "RGBA" keeps it.

    Raises:
        ValueError: If the file is missing, no image of `FORMATS`, truncated or larger than `max_pixels`; the file is named.
    """
    most = MAX_PIXELS if max_pixels is None else max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path if data is None else io.BytesIO(data), formats=FORMATS) as picture:
                if picture.width * picture.height > most:
                    raise ValueError(f"{picture.width}x{picture.height} pixels, at most {most:,} are read")
                return picture.convert(mode)
    except UnidentifiedImageError as error:
        # Pillow's own message holds the address of an object.
        raise ValueError(f"image {str(path)!r} cannot be read: it is no {', '.join(FORMATS)} picture") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's own message speaks of an attack.
        raise ValueError(f"image {str(path)!r} cannot be read: too many pixels, at most {most:,} are read") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"image {str(path)!r} cannot be read: {error}") from error


def list_images(folder: str | Path) -> list[Path]:
    """Return the pictures below `folder` in sorted order.

    Raises:
        ValueError: If the folder is missing or holds no picture.
    """
    return list_files(folder, SUFFIXES, kind="image", what="picture")
