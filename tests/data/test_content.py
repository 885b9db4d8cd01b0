from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hiergen.data.codes import write_codes
from hiergen.data.files.content import BYTES_PER_PLACE, NUM_PLACES, PIECE, Span, content_digest
from hiergen.data.images.on_disk import FolderPictures, PictureSet, SplitPictures
from hiergen.data.images.shards import ShardPictures
from hiergen.pyramid import LevelSpec, TokenPyramid


def changed(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def picture(shade: int) -> bytes:
    """A bitmap: all of its kind are of one size."""
    import io

    file = io.BytesIO()
    Image.fromarray(np.full((40, 40, 3), shade, np.uint8)).save(file, "bmp")
    return file.getvalue()


@pytest.mark.parametrize("length", [0, 1, PIECE, NUM_PLACES * PIECE])
def test_of_a_small_file_every_byte_is_seen(tmp_path, length) -> None:
    path = tmp_path / "a"
    path.write_bytes(random.Random(0).randbytes(length))
    before = content_digest([Span(path)])
    for at in range(0, length, max(1, length // 9)):
        changed(path, at)
        assert content_digest([Span(path)]) != before
        changed(path, at)
    assert content_digest([Span(path)]) == before


def test_of_a_large_file_the_places_are_seen_and_the_whole_on_request(tmp_path) -> None:
    path, length = tmp_path / "a", 5 * BYTES_PER_PLACE + 123
    path.write_bytes(bytes(length))
    sampled, whole = content_digest([Span(path)]), content_digest([Span(path)], is_whole=True)
    # Five places: both ends, and three between.
    for at in (0, PIECE - 1, (length - PIECE) // 4, (length - PIECE) // 2 + 17, length - 1):
        changed(path, at)
        assert content_digest([Span(path)]) != sampled, at
        changed(path, at)
    changed(path, 2 * PIECE)
    assert content_digest([Span(path)]) == sampled
    assert content_digest([Span(path)], is_whole=True) != whole


def test_spans_of_one_file_and_files_that_cannot_be_read(tmp_path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(range(100)))
    spans = [Span(path, 10, 5), Span(path, 20, 5)]
    before = content_digest(spans)
    changed(path, 30)
    assert content_digest(spans) == before
    changed(path, 24)
    assert content_digest(spans) != before
    # The order counts, and so does where one ends and the next begins.
    assert content_digest(spans[::-1]) != content_digest(spans)
    assert content_digest([Span(path, 10, 4), Span(path, 14, 6)]) != content_digest([Span(path, 10, 10)])
    path.unlink()
    assert content_digest(spans) == content_digest([Span(tmp_path / "b", 10, 5)])


def test_a_replaced_picture_of_the_same_size_changes_the_content_alone(tmp_path, write_tar) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for shade in range(6):
        (folder / f"{shade}.bmp").write_bytes(picture(shade))
    members = {f"{k}.{kind}": data for k in range(4) for kind, data in (("bmp", picture(k)), ("cls", b"0"))}
    shard = write_tar(tmp_path / "0.tar", members)

    def seen() -> list[tuple[str, str | None]]:
        sources = [FolderPictures(folder), ShardPictures(str(shard))]
        sources += [SplitPictures(sources[0], split=split, hold_out=3) for split in ("train", "test")]
        return [(s.fingerprint, PictureSet(s, size=8).content()) for s in sources]

    before = seen()
    (folder / "4.bmp").write_bytes(picture(99))
    write_tar(shard, {**members, "2.bmp": picture(99)})
    after = seen()
    assert [x for x, _ in before] == [x for x, _ in after]
    # Number 4 is a train picture.
    assert [x == y for (_, x), (_, y) in zip(before, after, strict=True)] == [False, False, False, True]


def test_a_dataset_on_disk_has_its_files_looked_at(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    from hiergen.data.images.archives import HubPictures

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    rows = {"image": [{"bytes": picture(k), "path": None} for k in range(3)], "label": [0, 0, 0]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")

    def look() -> tuple[str, str | None]:
        source = HubPictures(str(tmp_path / "set"))
        return source.fingerprint, PictureSet(source, size=8).content(is_whole=True)

    before = look()
    (table,) = (tmp_path / "set").glob("*.arrow")
    data = table.read_bytes()
    at = data.index(picture(1))
    table.write_bytes(data[:at] + picture(99) + data[at + len(picture(1)) :])
    assert look()[0] == before[0]
    assert look()[1] != before[1]


def test_codes_of_the_same_source_have_digits_of_their_own(tmp_path) -> None:
    specs = (LevelSpec(num_tokens=2, dim=3, vocab_size=8), LevelSpec(num_tokens=1, dim=2))

    def codes(name: str, value: float):
        def encode(start: int, stop: int) -> tuple[list[TokenPyramid], torch.Tensor]:
            levels = (torch.ones(stop - start, 2, dtype=torch.int64), torch.full((stop - start, 1, 2), value))
            return [TokenPyramid(levels, specs)], torch.zeros(stop - start, dtype=torch.int64)

        return write_codes(tmp_path / name, encode, num_samples=3, classes=["a"], source="s")

    one, same, other = codes("one", 0.0), codes("same", 0.0), codes("other", 1.0)
    assert one.fingerprint == other.fingerprint
    assert one.content() == same.content() != other.content()
