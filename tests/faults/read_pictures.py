"""Write valid pictures of known content in every format, mode and orientation, and read them: each comes out right or is refused by name.

    python tests/faults/read_pictures.py --count 1000

What is expected is computed from the numbers that were written, by rules stated in docs/guides/own_images.md and not by Pillow. Exit code 0
if nothing was read wrongly. Only what those rules refuse (LAB, values out of range) may be refused.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hiergen.data.images.files import image_size, read_image

#: EXIF orientation -> how an upright array lies in the file.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


class Case(NamedTuple):
    """A picture: its bytes, what it must read as (None: a refusal) and how far off values may be."""

    data: bytes
    expected: np.ndarray | None
    tolerance: int = 0


def on_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return color * share + 255 * (1 - share)


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


def png(pixels: np.ndarray, depth: int, color: int, chunks: dict[bytes, bytes], *, interlace: bool = False) -> bytes:
    """Return a PNG file of samples `(h, w, channels)` as the standard has it, apart from any library."""
    height, width = pixels.shape[:2]

    def rows(part: np.ndarray) -> bytes:
        if depth == 16:
            lines = [row.astype(">u2").tobytes() for row in part]
        else:
            bits = np.unpackbits(part.astype(np.uint8).reshape(len(part), -1, 1), axis=-1)[..., 8 - depth :]
            lines = [np.packbits(row.reshape(-1)).tobytes() for row in bits]
        return b"".join(b"\0" + line for line in lines)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
    parts = [pixels[a::b, c::d] for a, b, c, d in passes] if interlace else [pixels]
    body = b"".join(rows(part) for part in parts if part.size)
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlace))
    inner = b"".join(chunk(name, data) for name, data in chunks.items())
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + inner + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    )


def exif_of(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = turn
    return exif


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def raw_png(draws: random.Random, rng: np.random.Generator, shape: tuple[int, int]) -> Case:
    """PNG of any depth and color, with any kind of transparency, interlaced or not, turned or not."""
    turn, interlace = draws.randint(1, 8), draws.random() < 0.5
    chunks = {b"eXIf": exif_of(turn).tobytes()[6:]} if turn > 1 or draws.random() < 0.5 else {}
    color = draws.choice([0, 2, 3, 4, 6])
    depth = draws.choice({0: [1, 2, 4, 8, 16], 3: [1, 2, 4, 8]}.get(color, [8, 16]))
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    most = 2**depth - 1
    # Few values, so that a transparent one occurs more than once.
    palette_of_values = rng.integers(0, most + 1, (6,))
    pixels = palette_of_values[rng.integers(0, 6, (*shape, channels))]
    if depth == 16 and color == 2:
        # Pillow hands over the high halves alone, which must tell the transparent color from others.
        pixels = pixels // 257 * 257
    alpha = np.full(shape, 255)
    eight = pixels >> 8 if depth == 16 else pixels * (255 // most)
    if color == 3:
        table = rng.integers(0, 256, (most + 1, 3))
        chunks[b"PLTE"] = table.astype(np.uint8).tobytes()
        upright = table[pixels[..., 0]]
        kind = draws.choice(["none", "one", "many"])
        if kind != "none":
            clear = np.full(most + 1, 255)
            clear[draws.randint(0, most)] = 0
            clear = rng.integers(0, 256, most + 1) if kind == "many" else clear
            clear = clear[: draws.randint(1, most + 1)]
            chunks[b"tRNS"] = clear.astype(np.uint8).tobytes()
            alpha = np.concatenate([clear, np.full(most + 1 - len(clear), 255)])[pixels[..., 0]]
    else:
        upright = gray(eight[..., 0]) if channels < 3 else eight[..., :3]
        if channels in (2, 4):
            alpha = eight[..., -1]
        elif draws.random() < 0.5:
            key = pixels[draws.randrange(shape[0]), draws.randrange(shape[1])]
            chunks[b"tRNS"] = key.astype(">u2").tobytes()
            alpha = np.where((pixels == key).all(axis=-1), 0, 255)
    return Case(
        png(np.ascontiguousarray(STORED[turn](pixels)), depth, color, chunks, interlace=interlace),
        on_white(upright, alpha),
        1,
    )


def tiff(draws: random.Random, rng: np.random.Generator, shape: tuple[int, int]) -> Case:
    """TIFF of every mode that Pillow writes, packed or not, in either order of bytes, turned or not."""
    turn = draws.randint(1, 8)
    eight = rng.integers(0, 256, (*shape, 4)).astype(np.uint8)
    rgb, alpha, shade = eight[..., :3], eight[..., 3], eight[..., 0]
    deep = rng.integers(0, 65_536, shape)
    packing = draws.choice([None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
    ink = 255 - eight[..., 3:].astype(int)
    kinds: dict[str, tuple[np.ndarray, str | None, np.ndarray | None]] = {
        "1": (shade > 127, None, gray((shade > 127) * 255)),
        "L": (shade, None, gray(shade)),
        "LA": (np.stack([shade, alpha], -1), None, on_white(gray(shade), alpha)),
        "RGB": (rgb, None, rgb),
        "RGBA": (eight, None, on_white(rgb, alpha)),
        "CMYK": (eight, "CMYK", (255 - rgb.astype(int)) * ink / 255),
        "I;16": (deep.astype("<u2"), None, gray(deep >> 8)),
        "I;16B": (deep.astype(">u2"), None, gray(deep >> 8)),
        "I": (deep.astype(np.int32), None, gray(deep >> 8)),
        "F": ((deep / 65_535).astype(np.float32), None, gray(np.rint(deep / 257))),
        "I too large": (deep.astype(np.int32) + 65_536, None, None),
        "F too large": (deep.astype(np.float32) + 1.5, None, None),
        "LAB": (rgb, "LAB", None),
    }
    pixels, mode, expected = kinds[draws.choice(list(kinds))]
    pixels = np.ascontiguousarray(STORED[turn](pixels))
    picture = Image.fromarray(pixels) if mode is None else Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes())
    return Case(saved(picture, "TIFF", compression=packing, exif=exif_of(turn)), expected, 1)


def tiff_file(pixels: np.ndarray, order: str, tags: dict[int, int]) -> bytes:
    """Return an unpacked TIFF file of samples `(h, w, channels)` as the standard has it; `order` is "<" or ">"."""
    height, width, channels = pixels.shape
    bits = pixels.dtype.itemsize * 8
    body = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    body += b"\0" * (len(body) % 2)
    wide = len(body) + 8
    # Several values of a tag lie behind the pixels.
    entries = {256: (3, width), 257: (3, height), 258: (3, bits), 259: (3, 1), 273: (4, 8), 277: (3, channels)}
    entries |= {278: (3, height), 279: (4, pixels.nbytes), **{tag: (3, value) for tag, value in tags.items()}}
    listing = b""
    for tag, (kind, value) in sorted(entries.items()):
        count = channels if tag in (258, 339) else 1
        if count > 2:
            listing += struct.pack(f"{order}HHII", tag, kind, count, wide)
        elif kind == 3:
            listing += struct.pack(f"{order}HHI2H", tag, kind, count, value, value if count == 2 else 0)
        else:
            listing += struct.pack(f"{order}HHII", tag, kind, count, value)
    extra = struct.pack(f"{order}{channels}H", *[bits] * channels)
    start = wide + len(extra)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    return head + body + extra + struct.pack(f"{order}H", len(entries)) + listing + b"\0" * 4


def raw_tiff(draws: random.Random, rng: np.random.Generator, shape: tuple[int, int]) -> Case:
    """TIFF of 8 and 16 bits, black or white being zero, with transparency that colors are multiplied by or not."""
    turn, order, bits = draws.randint(1, 8), draws.choice("<>"), draws.choice([8, 16])
    kind = draws.choice(["black is zero", "white is zero", "RGB", "RGBX", "RGBA", "multiplied"])
    if kind == "white is zero" and bits == 16:
        # The other order is one that Pillow does not know.
        order = "<"
    channels = {"RGB": 3, "RGBX": 4, "RGBA": 4, "multiplied": 4}.get(kind, 1)
    pixels = rng.integers(0, 2**bits, (*shape, channels)).astype(f"u{bits // 8}")
    if kind == "multiplied":
        pixels[..., :3] = np.minimum(pixels[..., :3], pixels[..., 3:])
    eight = (pixels >> (bits - 8)).astype(int)
    expected = {
        "black is zero": lambda: gray(eight[..., 0]),
        "white is zero": lambda: gray(255 - eight[..., 0]),
        "RGB": lambda: eight,
        "RGBX": lambda: eight[..., :3],
        "RGBA": lambda: on_white(eight[..., :3], eight[..., 3]),
        "multiplied": lambda: eight[..., :3] + 255 - eight[..., 3:],
    }[kind]()
    tags = {262: {"white is zero": 0, "black is zero": 1}.get(kind, 2), 274: turn}
    tags |= {"RGBX": {338: 0}, "RGBA": {338: 2}, "multiplied": {338: 1}}.get(kind, {})
    stored = np.ascontiguousarray(STORED[turn](pixels))
    return Case(tiff_file(stored, order, tags), expected, 2 if kind == "multiplied" else 1)


def packed(draws: random.Random, rng: np.random.Generator, shape: tuple[int, int]) -> Case:
    """JPEG of gray, color and four inks, and WebP with losses: smooth blocks, so that little is lost."""
    turn = draws.randint(1, 8)
    kind, mode = draws.choice([("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGB")])
    options: dict[str, Any] = {"quality": 100, "exif": exif_of(turn)}
    # WebP takes colors of two pixels together, across blocks.
    sides = (1, 1) if kind == "WEBP" else (draws.randint(1, 3), draws.randint(1, 3))
    blocks = rng.integers(0, 256, (*sides, 4)).astype(np.uint8)
    eight = blocks.repeat(16, 0).repeat(16, 1)
    rgb = eight[..., :3]
    if kind == "JPEG":
        options |= {"subsampling": 0, "progressive": draws.random() < 0.5}
    pixels = {"L": eight[..., 0], "RGB": rgb, "CMYK": eight}[mode]
    ink = 255 - eight[..., 3:].astype(int)
    expected = {"L": gray(eight[..., 0]), "RGB": rgb, "CMYK": (255 - rgb.astype(int)) * ink / 255}[mode]
    pixels = np.ascontiguousarray(STORED[turn](pixels))
    picture = Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes())
    return Case(saved(picture, kind, **options), expected, 6)


def webp(draws: random.Random, rng: np.random.Generator, shape: tuple[int, int]) -> Case:
    """WebP without losses, opaque or not, alone or the first of several."""
    turn, channels = draws.randint(1, 8), draws.choice([3, 4])
    pixels = rng.integers(0, 256, (*shape, channels)).astype(np.uint8)
    expected = on_white(pixels[..., :3], pixels[..., 3]) if channels == 4 else pixels
    picture = Image.fromarray(np.ascontiguousarray(STORED[turn](pixels)))
    more: dict[str, Any] = {}
    if draws.random() < 0.5:
        more = {"save_all": True, "append_images": [Image.new(picture.mode, picture.size, "red")]}
    return Case(saved(picture, "WEBP", lossless=True, exact=True, exif=exif_of(turn), **more), expected, 1)


def gif(draws: random.Random, rng: np.random.Generator, shape: tuple[int, int]) -> Case:
    """GIF with a palette, a transparent entry or none, interlaced or not, alone or the first of several."""
    table = rng.integers(0, 256, (8, 3)).astype(np.uint8)
    pixels = rng.integers(0, 8, shape).astype(np.uint8)
    picture = Image.frombytes("P", shape[::-1], pixels.tobytes())
    picture.putpalette(table.tobytes())
    more: dict[str, Any] = {"interlace": draws.randint(0, 1), "optimize": False}
    alpha = np.full(shape, 255)
    if draws.random() < 0.5:
        clear = draws.randrange(8)
        more["transparency"], alpha = clear, np.where(pixels == clear, 0, 255)
    if draws.random() < 0.5:
        more |= {"save_all": True, "append_images": [Image.new("RGB", picture.size, "red")]}
    return Case(saved(picture, "GIF", **more), on_white(table[pixels], alpha), 1)


def plain(draws: random.Random, rng: np.random.Generator, shape: tuple[int, int]) -> Case:
    """BMP and the PPM family, as bytes or as text."""
    pixels = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    shade, deep = pixels[..., 0], rng.integers(0, 65_536, shape)
    height, width = shape
    kind = draws.choice(["BMP 1", "BMP L", "BMP RGB", "PBM", "PGM", "PPM", "PGM 16", "PPM 16", "PFM", "text"])
    if kind == "text":
        body = " ".join(str(value) for value in pixels.reshape(-1))
        return Case(f"P3\n# a note\n{width} {height}\n255\n{body}\n".encode(), pixels)
    if kind == "PPM 16":
        deep = rng.integers(0, 65_536, (*shape, 3))
        return Case(f"P6\n{width} {height}\n65535\n".encode() + deep.astype(">u2").tobytes(), deep >> 8, 1)
    if kind in ("BMP 1", "PBM"):
        return Case(saved(Image.fromarray(shade > 127), kind[:3].replace("PBM", "PPM")), gray((shade > 127) * 255))
    if kind == "PGM 16":
        return Case(saved(Image.fromarray(deep.astype(np.int32)), "PPM"), gray(deep >> 8))
    if kind == "PFM":
        return Case(saved(Image.fromarray((deep / 65_535).astype(np.float32)), "PPM"), gray(np.rint(deep / 257)), 1)
    chosen = shade if kind in ("BMP L", "PGM") else pixels
    return Case(
        saved(Image.fromarray(chosen), "BMP" if "BMP" in kind else "PPM"), gray(shade) if chosen is shade else pixels
    )


MAKERS = (raw_png, tiff, raw_tiff, packed, webp, gif, plain)


def run(count: int, seed: int) -> dict[str, dict[str, int]]:
    """Return by maker how many pictures were read right, refused as they must be, and anything else, which is printed."""
    found = {make.__name__: {"right": 0, "refused": 0, "wrong": 0} for make in MAKERS}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture"
        for trial in range(count):
            make = MAKERS[trial % len(MAKERS)]
            draws, rng = random.Random(f"{seed} {trial}"), np.random.default_rng([seed, trial])
            case = make(draws, rng, (draws.randint(1, 24), draws.randint(1, 24)))
            file.write_bytes(case.data)
            outcome, problem = "wrong", ""
            try:
                picture = read_image(file)
                if case.expected is None:
                    problem = "was read, expected a refusal"
                elif np.asarray(picture).shape != case.expected.shape or image_size(file) != picture.size:
                    problem = f"is {picture.size}, or {image_size(file)} by its head, expected {case.expected.shape}"
                else:
                    error = np.abs(np.asarray(picture).astype(float) - case.expected).max()
                    outcome, problem = ("right", "") if error <= case.tolerance else ("wrong", f"is off by {error}")
            except ValueError as error:
                is_due = case.expected is None and str(file) in str(error)
                outcome, problem = ("refused", "") if is_due else ("wrong", f"was refused: {error}")
            found[make.__name__][outcome] += 1
            if problem:
                with Image.open(file) as picture:
                    print(
                        f"{make.__name__} {trial} ({picture.format} {picture.mode} {picture.tile}): {problem}",
                        file=sys.stderr,
                    )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="pictures to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = run(options.count, options.seed)
    print(json.dumps(found, indent=2))
    return int(any(tally["wrong"] for tally in found.values()))


if __name__ == "__main__":
    sys.exit(main())
