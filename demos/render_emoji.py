"""Render the archive of emoji that the recipes for emoji train on: 6,444 pictures of 64 x 64 pixels on white, with what Unicode says of each.

    npm pack @iconify-json/twemoji@1.2.5 @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji-flat@1.2.6 \
        @iconify-json/fluent-emoji@1.2.7 emoji-datasource@16.0.0
    pip install resvg-py
    python demos/render_emoji.py FOLDER emoji_64.npz

FOLDER holds the five packages as `npm pack` leaves them. The drawings are Twitter's (twemoji, CC BY 4.0), Google's (noto, Apache-2.0) and
Microsoft's (fluent and fluent-flat, MIT); names and groups are of emoji-datasource (MIT). Flags and skin tones are left out.
"""

import argparse
import importlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hiergen.files import atomic_path
from hiergen.telling import say

#: The styles in their order; a style without a table of characters takes that of the style named behind it.
STYLES = {
    "twemoji": ("iconify-json-twemoji", "iconify-json-twemoji"),
    "noto": ("iconify-json-noto", "iconify-json-noto"),
    "fluent-flat": ("iconify-json-fluent-emoji-flat", "iconify-json-fluent-emoji-flat"),
    "fluent": ("iconify-json-fluent-emoji", "iconify-json-fluent-emoji-flat"),
}
SIZE, MARGIN = 64, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("archive", type=Path)
    given = parser.parse_args()
    table = read(given.folder, "emoji-datasource", "emoji.json")
    emoji = [entry for entry in table if entry["category"] not in ("Flags", "Component")]
    classes = sorted({_class(entry) for entry in emoji})
    groups = sorted({entry["category"] for entry in emoji})
    pictures, labels, names, texts, styles = [], [], [], [], []
    for number, style in enumerate(STYLES):
        for entry, picture in _drawn(given.folder, style, emoji):
            pictures.append(picture)
            labels.append(classes.index(_class(entry)))
            names.append(f"{style}/{entry['short_name']}")
            texts.append((entry["name"] or entry["short_name"].replace("_", " ")).lower())
            styles.append(number)
        say(f"render_emoji: {styles.count(number):,} pictures in the style {style}")
    with atomic_path(given.archive) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            webp=np.frombuffer(b"".join(pictures), np.uint8),
            offsets=np.cumsum([0, *map(len, pictures)], dtype=np.int64),
            labels=np.array(labels, np.uint8),
            names=np.array(names),
            texts=np.array(texts),
            classes=np.array(classes),
            class_groups=np.array([groups.index(name.split("/")[0]) for name in classes]),
            groups=np.array(groups),
            styles=np.array(styles, np.uint8),
            style_names=np.array(list(STYLES)),
        )
    say(f"render_emoji: {len(pictures):,} pictures -> {given.archive}")


def read(folder: Path, package: str, name: str) -> Any:
    """Return a JSON file of a package that `npm pack` left in a folder.

    Raises:
        SystemExit: If there is not exactly one file of that package.
    """
    found = [path for path in folder.glob(f"{package}-*.tgz") if path.name[len(package) + 1].isdigit()]
    if len(found) != 1:
        raise SystemExit(f"{str(folder)!r} holds {len(found)} files {package}-VERSION.tgz, expected 1")
    with tarfile.open(found[0]) as archive:
        member = archive.extractfile(f"package/{name}")
        if member is None:
            raise SystemExit(f"{str(found[0])!r} holds no {name}")
        return json.load(member)


def _class(entry: dict[str, Any]) -> str:
    return f"{entry['category']}/{entry['subcategory']}"


def _drawn(folder: Path, style: str, emoji: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield the emoji that a style has, with their pictures as lossless WebP."""
    package, characters = STYLES[style]
    icons, chars = read(folder, package, "icons.json"), read(folder, characters, "chars.json")
    for entry in emoji:
        code = entry["unified"].lower()
        name = chars.get(code) or chars.get(code.replace("-fe0f", ""))
        if name in icons["icons"] or name in icons["aliases"]:
            yield entry, render(icons, name)


def render(icons: dict[str, Any], name: str) -> bytes:
    """Return an icon on white as lossless WebP, drawn at twice the size and reduced.

    Args:
        icons: A set of icons as Iconify has it.
        name: Name of one, or an alias, which may mirror its parent.
    """
    alias = icons["aliases"].get(name, {})
    icon = icons["icons"][alias.get("parent", name)]
    left, top, width, height = (icon.get(key, icons.get(key, 0)) for key in ("left", "top", "width", "height"))
    body = icon["body"]
    if alias.get("hFlip"):
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    size = f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}"'
    drawing = f"<svg {namespaces} {size}>{body}</svg>"
    try:
        renderer = importlib.import_module("resvg_py")
    except ImportError as error:
        raise SystemExit("rendering emoji needs resvg-py: pip install resvg-py") from error
    drawn = Image.open(
        io.BytesIO(bytes(renderer.svg_to_bytes(svg_string=drawing, width=2 * SIZE, height=2 * SIZE)))
    ).convert("RGBA")
    white = Image.new("RGBA", drawn.size, "white")
    white.alpha_composite(drawn)
    # The few drawings that are not square are stretched.
    inner = SIZE - 2 * MARGIN
    picture = Image.new("RGB", (SIZE, SIZE), "white")
    picture.paste(white.convert("RGB").resize((inner, inner), Image.Resampling.LANCZOS), (MARGIN, MARGIN))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True, method=6, quality=100)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
