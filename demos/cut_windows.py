"""Cut training windows for `tokenizers/hieratok_photographs.py` out of photographs.

    python demos/cut_windows.py windows.npz FOLDER --without kodim07 kodim23 --count 16000

Takes all pictures of a folder and eight of scikit-image's own. Half of the windows have the scale of their picture, half are reduced up to
three times. Pictures are chosen by their area, textures a quarter as often.
"""

import argparse
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from hiergen.data.images.files import list_images, read_image
from hiergen.files import atomic_path

SIDE = 64
#: Of scikit-image: in the public domain or CC0.
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
TEXTURES = ("hubble_deep_field", "brick", "grass", "gravel")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("folder")
    parser.add_argument("--without", nargs="*", default=[], help="names of pictures that are held out")
    parser.add_argument("--count", type=int, default=16_000)
    options = parser.parse_args()
    pictures = dict(_pictures(options.folder, set(options.without)))
    names = list(pictures)
    weights = np.array([_weight(name, picture) for name, picture in pictures.items()])
    rng = np.random.default_rng(0)
    windows, labels = [], []
    for _ in range(options.count):
        label = rng.choice(len(names), p=weights / weights.sum())
        windows.append(_window(pictures[names[label]], rng))
        labels.append(label)
    with atomic_path(options.out) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            webp=np.frombuffer(b"".join(windows), np.uint8),
            offsets=np.cumsum([0, *map(len, windows)], dtype=np.int64),
            labels=np.array(labels, np.int64),
            classes=np.array(names),
        )
    print(f"{options.out}: {len(windows):,} windows of {len(names)} pictures")


def _pictures(folder: str, without: set[str]) -> Iterator[tuple[str, Image.Image]]:
    from skimage import data

    for path in list_images(folder):
        if path.stem not in without:
            yield path.stem, read_image(path)
    for name in (*PHOTOGRAPHS, *TEXTURES):
        yield name, Image.fromarray(getattr(data, name)()).convert("RGB")


def _weight(name: str, picture: Image.Image) -> float:
    return min(picture.width * picture.height, 768 * 512) * (0.25 if name in TEXTURES else 1.0)


def _window(picture: Image.Image, rng: np.random.Generator) -> bytes:
    """Return a window as lossless WebP."""
    side = round(SIDE * 2 ** rng.uniform(0, 1.6)) if rng.random() < 0.5 else SIDE
    side = min(side, *picture.size)
    x, y = rng.integers(0, picture.width - side + 1), rng.integers(0, picture.height - side + 1)
    window = picture.crop((x, y, x + side, y + side))
    if side != SIDE:
        window = window.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    window.save(buffer, "WEBP", lossless=True, method=0)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
