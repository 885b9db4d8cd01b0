from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import pytest

from hiergen.data.config import DataConfig
from hiergen.data.images.idx import IdxPictures
from hiergen.data.sources import open_images

DATA = Path(os.environ.get("HIERGEN_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))


def idx(*shape: int, data: bytes) -> bytes:
    return bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + data


def write(folder: Path, *, stem: str = "train", shades: bytes = bytes((10, 20, 30)), labels: bytes = b"\2\0\1") -> None:
    pixels = b"".join(bytes((shade,)) * 12 for shade in shades)
    (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(len(shades), 4, 3, data=pixels)))
    (folder / f"{stem}-labels-idx1-ubyte").write_bytes(idx(len(labels), data=labels))


def test_both_splits_are_read_packed_or_plain(tmp_path) -> None:
    write(tmp_path)
    write(tmp_path, stem="t10k", shades=b"\7", labels=b"\1")
    data = open_images(DataConfig(source=f"idx:{tmp_path}", size=16, in_memory=False))
    batch = data.batch([(2, 0), (0, 0)], seed=0)
    assert batch["image"].shape == (2, 3, 16, 16)
    assert ((batch["image"][:, :, 5, 5] + 1) * 127.5).round().tolist() == [[30] * 3, [10] * 3]
    assert batch["label"].tolist() == [1, 2]
    assert data.classes == ("0", "1", "2")
    test = open_images(DataConfig(source=f"idx:{tmp_path}", size=4, split="test"))
    assert test.images.shape == (1, 3, 4, 4)
    assert test.labels.tolist() == [1]
    assert IdxPictures(tmp_path).fingerprint != IdxPictures(tmp_path, split="test").fingerprint
    picture = IdxPictures(tmp_path).read(1)
    assert (picture.size, picture.getpixel((0, 0))) == ((3, 4), (20, 20, 20))


def test_damaged_files_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"split is 'val', expected one of \('train', 'test'\)"):
        IdxPictures(tmp_path, split="val")
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz' cannot be read"):
        IdxPictures(tmp_path)
    write(tmp_path, labels=b"\0\1")
    with pytest.raises(ValueError, match="holds 3 pictures and 2 labels"):
        IdxPictures(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    for content, message in (
        (idx(3, data=b"\0\1"), "its header promises 3 bytes, it holds 2"),
        (idx(3, data=b"\0\1\2\3"), "its header promises 3 bytes, it holds 4"),
        (idx(3, 1, data=b"\0\1\2"), "not unsigned bytes in 1 dimensions"),
        (b"\0\0", "not unsigned bytes in 1 dimensions"),
        (idx(2**31 + 1, data=b""), r"its header claims 2,147,483,649 bytes, at most 2,147,483,648"),
    ):
        labels.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{labels.name}' cannot be read: {message}"):
            IdxPictures(tmp_path)
    packed = tmp_path / "train-images-idx3-ubyte.gz"
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(ValueError, match=r"idx3-ubyte\.gz' cannot be read: Compressed file ended"):
        IdxPictures(tmp_path)


@pytest.mark.skipif(not (DATA / "fashion-mnist").is_dir(), reason="Fashion-MNIST is not here (HIERGEN_DATA)")
def test_fashion_mnist() -> None:
    test = IdxPictures(DATA / "fashion-mnist", split="test")
    assert (len(test.labels), len(test.classes), test.read(0).size) == (10_000, 10, (28, 28))
    assert [test.labels.count(k) for k in range(10)] == [1000] * 10
