"""Image files: reading one that nobody vouches for, and listing those below a folder. Which pixels it becomes is `modes` and `pixels`."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError

from hiergen.data.files.folders import list_files
from hiergen.data.images.modes import orientation, to_color

#: Larger pictures are refused: decoding is a known way to exhaust memory.
MAX_PIXELS = 64_000_000
SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
)
#: Formats that a picture may have, whatever its suffix. Pillow knows more, some of which run other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")


def read_image(
    path: str | Path, *, data: bytes | None = None, max_pixels: int | None = None, mode: Literal["RGB", "RGBA"] = "RGB"
) -> Image.Image:
    """Return a picture as a PIL image, wholly decoded, upright, with 8 bits per color; see `hiergen.data.images.modes.to_color`.

    Of several pictures in one file (animations, pages) it is the first.

    Args:
        path: The file, or what `data` is called in errors.
        data: The bytes of an image file, in place of reading one.
        max_pixels: Larger pictures are refused, before they are decoded; None for `MAX_PIXELS`.
        mode: "RGB" puts what is transparent on white, "RGBA" keeps transparency.

    Raises:
        ValueError: If the file is missing, no image of `FORMATS`, truncated, larger than `max_pixels`, or of values that no rule brings
            to 8 bits; the file is named.
    """
    with _open(path, data, max_pixels) as picture:
        return to_color(picture, mode)


def image_size(path: str | Path) -> tuple[int, int]:
    """Return width and height of the picture that `read_image` would return, mostly from the head of its file.

    Raises:
        ValueError: If the file is missing, no image of `FORMATS`, or larger than `MAX_PIXELS`; the file is named.
    """
    with _open(path, None, None) as picture:
        # A TIFF file's size is upright already. A PNG file may name its orientation behind the pixels: nobody does, and looking is slow.
        is_known = picture.format == "TIFF" or (picture.format == "PNG" and "exif" not in picture.info)
        is_sideways = not is_known and orientation(picture) >= 5
        return (picture.height, picture.width) if is_sideways else picture.size


def list_images(folder: str | Path) -> list[Path]:
    """Return the pictures below `folder` in sorted order; what else is there is named in a warning.

    Raises:
        ValueError: If the folder is missing or holds no picture.
    """
    return list_files(folder, SUFFIXES, kind="image", what="picture")


@contextlib.contextmanager
def _open(path: str | Path, data: bytes | None, max_pixels: int | None) -> Iterator[Image.Image]:
    """Open a picture; whatever goes wrong with it, then or later inside, is a ValueError that names it."""
    most = MAX_PIXELS if max_pixels is None else max_pixels
    name = f"image {str(path)!r} cannot be read"
    if data is None and not Path(path).is_file():
        # Opening a pipe would wait for ever.
        why = "it is no regular file" if Path(path).exists() else "it does not exist"
        raise ValueError(f"{name}: {why}")
    try:
        with warnings.catch_warnings():
            # What Pillow remarks on a file is either refused or of no consequence.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # By its path Pillow would map a TIFF file into memory, and get the sides of one that lies sideways wrong.
            with (
                open(path, "rb") if data is None else io.BytesIO(data) as file,
                Image.open(file, formats=FORMATS) as picture,
            ):
                if not 0 < picture.width * picture.height <= most:
                    raise ValueError(f"{picture.width}x{picture.height} pixels, at most {most:,} are read")
                yield picture
    except UnidentifiedImageError as error:
        # Pillow's own message holds the address of an object.
        raise ValueError(f"{name}: it is no {', '.join(FORMATS)} picture, or one of a rare kind") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's own message speaks of an attack.
        raise ValueError(f"{name}: too many pixels, at most {most:,} are read") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{name}: {error}") from error
    # Decoders stumble over damaged bytes in ways of their own.
    except Exception as error:
        raise ValueError(f"{name}: {type(error).__name__}: {error}") from error
