"""Make the embedded set of emoji from an archive of larger ones: two styles, 32 pixels high, groups as classes.

    python demos/embed_emoji.py emoji_64.npz

The archive is that of `docs/results/emoji.md`: lossless WebP of 64 x 64 pixels with names, styles and groups.
"""

import argparse
import io

import numpy as np
from PIL import Image

from hiergen.data.embedded.emoji import EMOJI_GROUPS, FILE
from hiergen.data.files.npz_files import open_npz, read_array
from hiergen.files import atomic_path

STYLES = ("noto", "fluent-flat")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive")
    path = parser.parse_args().archive
    wanted = ("webp", "offsets", "labels", "names", "groups", "class_groups", "styles", "style_names")
    with open_npz(path) as archive:
        given = {name: read_array(archive, name, path) for name in wanted}
    if tuple(map(str, given["groups"])) != EMOJI_GROUPS:
        raise SystemExit(f"groups are {list(given['groups'])}, expected {list(EMOJI_GROUPS)}")
    chosen = [k for k, style in enumerate(given["styles"]) if given["style_names"][style] in STYLES]
    pictures = [_smaller(given["webp"][given["offsets"][k] : given["offsets"][k + 1]].tobytes()) for k in chosen]
    with atomic_path(FILE) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            webp=np.frombuffer(b"".join(pictures), np.uint8),
            offsets=np.cumsum([0, *map(len, pictures)], dtype=np.int64),
            labels=given["class_groups"][given["labels"][chosen]].astype(np.int64),
            classes=np.array(EMOJI_GROUPS),
            names=given["names"][chosen],
        )
    print(f"{FILE}: {len(chosen):,} pictures, {FILE.stat().st_size / 2**20:.1f} MiB")


def _smaller(data: bytes) -> bytes:
    picture = Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True, method=6, quality=100)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
