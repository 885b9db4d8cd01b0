"""WebDataset tar shards as a source of pictures, read by their offsets.

Only image files and integers are ever decoded; nothing of an archive is run.
"""

from __future__ import annotations

import glob
import hashlib
import posixpath
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from hiergen.data.files.content import Span
from hiergen.data.files.folders import first_names, is_hidden, warn_once
from hiergen.data.images.columns import MAX_CLASSES
from hiergen.data.images.files import SUFFIXES, read_image
from hiergen.data.images.on_disk import PictureSource

#: Suffixes that earlier versions read, in names with a single dot.
_EARLIER_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
#: First bytes of archives that cannot be read by offset.
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z",
}


class _Place(NamedTuple):
    name: str
    offset: int
    size: int


class ShardPictures(PictureSource):
    """The pictures of WebDataset tar shards: files KEY.jpg (or another image suffix) with KEY.cls, an integer.

    A key may hold dots, and a picture may be a named part: A.B.jpg belongs to A.B.cls or else to A.cls. Where a sample has a picture
    without a part's name, other parts are left out. Shards are indexed once by their headers; a picture is read by its offset, so any
    order costs the same. The fingerprint covers names and sizes of the shards, the `spans` what is in the pictures.

    Args:
        pattern: Shards, as a shell pattern or with one brace range: `train-{0000..0063}.tar`.

    Raises:
        ValueError: If no shard matches, one is missing, damaged or compressed, a picture has no class, a sample has several pictures,
            or there is no picture at all.
    """

    def __init__(self, pattern: str) -> None:
        self._shards = _expand(pattern)
        self._places: list[tuple[int, _Place]] = []
        self.labels = []
        left_out: list[str] = []
        digest = hashlib.sha256()
        for number, shard in enumerate(self._shards):
            if not shard.is_file():
                raise ValueError(f"shard {str(shard)!r} does not exist")
            digest.update(f"{shard.name}\0{shard.stat().st_size}\0".encode())
            try:
                pictures, labels, others = _members(shard)
            except (tarfile.TarError, OSError) as error:
                raise ValueError(f"shard {str(shard)!r} is damaged: {error}") from error
            chosen = _choose(pictures, labels, shard)
            for key, name in chosen.items():
                self._places.append((number, pictures[name]))
                self.labels.append(labels[key])
                suffix = posixpath.basename(name).partition(".")[2]
                if f".{suffix.lower()}" not in _EARLIER_SUFFIXES:
                    # Earlier versions read other pictures of the same shards.
                    digest.update(f"{name}\0".encode())
            taken = set(chosen.values())
            left_out += [name for name in pictures if name not in taken]
            left_out += [f"{key}.cls" for key in labels if key not in chosen]
            left_out += [name for name in others if _sample(name, labels) not in chosen]
        reason = f"left out {len(left_out)} files of no sample that has a picture and a class ({first_names(left_out)})"
        if not self.labels:
            raise ValueError(f"shards {pattern!r} hold no picture with a class{f'; {reason}' if left_out else ''}")
        if left_out:
            warn_once(f"shards {pattern!r}: {reason}")
        self.classes = tuple(str(label) for label in range(max(self.labels) + 1))
        self.fingerprint = digest.hexdigest()[:16]

    def read(self, index: int) -> Image.Image:
        number, place = self._places[index]
        try:
            with open(self._shards[number], "rb") as file:
                file.seek(place.offset)
                data = file.read(place.size)
        except OSError as error:
            raise ValueError(f"shard {str(self._shards[number])!r} cannot be read: {error.strerror}") from error
        return read_image(f"{self._shards[number]}:{place.name}", data=data)

    def spans(self) -> list[Span]:
        return [Span(self._shards[number], place.offset, place.size) for number, place in self._places]


def _members(shard: Path) -> tuple[dict[str, _Place], dict[str, int], list[str]]:
    """Return the pictures of a shard by name, the class of each key, and the names of what is neither."""
    pictures: dict[str, _Place] = {}
    labels: dict[str, int] = {}
    others: list[str] = []
    end = 0
    with open(shard, "rb") as file:
        head = file.read(8)
    for magic, kind in _PACKED.items():
        if head.startswith(magic):
            raise ValueError(
                f"shard {str(shard)!r} is compressed ({kind}), expected a plain .tar: pictures are read by their place in it"
            )
    with tarfile.open(shard, "r:") as archive:
        for member in archive:
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            name = posixpath.normpath(member.name)
            stem, suffix = posixpath.splitext(name)
            if member.isdir() or (is_hidden(name) and suffix.lower() not in SUFFIXES):
                continue
            if not member.isreg() or is_hidden(name):
                others.append(name)
            elif suffix.lower() in SUFFIXES:
                pictures[name] = _Place(member.name, member.offset_data, member.size)
            elif suffix.lower() == ".cls":
                content = archive.extractfile(member)
                text = content.read(32).decode("ascii", "replace").strip() if content else ""
                if not text.isdigit() or int(text) >= MAX_CLASSES:
                    raise ValueError(
                        f"{member.name} in shard {str(shard)!r} is {text!r}, expected a class number below {MAX_CLASSES:,}"
                    )
                labels[stem] = int(text)
            else:
                others.append(name)
    with open(shard, "rb") as file:
        file.seek(end)
        # A shard that was cut between two files reads as a shorter one.
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"it ends at byte {end} without the mark of its end, so it was cut")
    return pictures, labels, others


def _choose(pictures: Iterable[str], labels: dict[str, int], shard: Path) -> dict[str, str]:
    """Return the name of each sample's picture by the key of its class, in the order of the shard."""
    samples: dict[str, list[str]] = {}
    for name in pictures:
        key = _sample(name, labels)
        if key is None:
            raise ValueError(f"{name} in shard {str(shard)!r} has no class: there is no .cls file of its name")
        samples.setdefault(key, []).append(name)
    chosen = {}
    for key, names in samples.items():
        whole = [name for name in names if posixpath.splitext(name)[0] == key] or names
        if len(whole) > 1:
            raise ValueError(
                f"sample {key} in shard {str(shard)!r} has several pictures, expected one: {first_names(whole)}"
            )
        chosen[key] = whole[0]
    return chosen


def _sample(name: str, labels: dict[str, int]) -> str | None:
    """Return the longest beginning of a file's name, up to a dot, that has a class."""
    return next((key for key in _beginnings(name) if key in labels), None)


def _beginnings(name: str) -> Iterator[str]:
    folder, base = posixpath.split(name)
    while "." in base:
        base = base.rpartition(".")[0]
        yield posixpath.join(folder, base)


def _expand(pattern: str) -> list[Path]:
    braces = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", pattern)
    if braces:
        head, first, last, tail = braces.groups()
        return [Path(f"{head}{k:0{len(first)}d}{tail}") for k in range(int(first), int(last) + 1)]
    found = sorted(Path(path) for path in glob.glob(pattern))
    if not found:
        raise ValueError(f"no shard matches {pattern!r}")
    return found
