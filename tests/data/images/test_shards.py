from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile

import pytest
from PIL import Image

from hiergen.data.config import DataConfig
from hiergen.data.images.shards import ShardPictures
from hiergen.data.sources import open_images


def encoded(shade: int, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (shade, 0, 0)).save(file, kind, **({"lossless": True} if kind == "webp" else {}))
    return file.getvalue()


def shades(source: ShardPictures) -> list[int]:
    return [source.read(index).getpixel((0, 0))[0] for index in range(len(source.labels))]


def reds(data, count: int) -> list[int]:
    batch = data.batch([(index, 0) for index in range(count)], seed=0)
    return ((batch["image"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_shards_are_read_by_offset_in_any_order(tmp_path, write_tar) -> None:
    write_tar(
        tmp_path / "a-00.tar", {"x/0.png": encoded(10), "x/0.cls": b"2", "x/1.cls": b"0\n", "x/1.jpg": encoded(20)}
    )
    write_tar(tmp_path / "a-01.tar", {"2.webp": encoded(30, "webp"), "2.json": b"{}", "2.cls": b"1"})
    for pattern in (f"{tmp_path}/a-*.tar", f"{tmp_path}/a-{{00..01}}.tar"):
        data = open_images(DataConfig(source=f"wds:{pattern}", size=16, in_memory=False))
        assert reds(data, 3) == [10, 20, 30]
        assert data.batch([(2, 0), (0, 0), (1, 0)], seed=0)["label"].tolist() == [1, 2, 0]
        assert data.classes == ("0", "1", "2")
    assert open_images(DataConfig(source=f"wds:{tmp_path}/a-*.tar", size=16)).images.shape == (3, 3, 16, 16)


def test_damaged_shards_are_named(tmp_path, write_tar) -> None:
    with pytest.raises(ValueError, match="no shard matches"):
        ShardPictures(str(tmp_path / "*.tar"))
    with pytest.raises(ValueError, match=r"shard '.*b-7\.tar' does not exist"):
        ShardPictures(str(tmp_path / "b-{7..8}.tar"))
    (tmp_path / "c.tar").write_bytes(b"x" * 600)
    with pytest.raises(ValueError, match=r"shard '.*c\.tar' is damaged"):
        ShardPictures(str(tmp_path / "c.tar"))
    write_tar(tmp_path / "d.tar", {"1.png": encoded(1)})
    with pytest.raises(ValueError, match=r"1\.png in shard '.*' has no class"):
        ShardPictures(str(tmp_path / "d.tar"))
    write_tar(tmp_path / "e.tar", {"1.png": encoded(1), "1.cls": b"cat"})
    with pytest.raises(ValueError, match=r"1\.cls in shard '.*' is 'cat', expected a class number below 1,000,000"):
        ShardPictures(str(tmp_path / "e.tar"))
    write_tar(tmp_path / "f.tar", {"1.png": encoded(1)[:40], "1.cls": b"0"})
    with pytest.raises(ValueError, match=r"image '.*f\.tar:1\.png' cannot be read"):
        ShardPictures(str(tmp_path / "f.tar")).read(0)


def test_a_shard_that_was_cut_anywhere_is_damaged_not_shorter(tmp_path, write_tar) -> None:
    whole, cut = tmp_path / "whole.tar", tmp_path / "cut.tar"
    write_tar(whole, {name: data for k in range(3) for name, data in ((f"{k}.png", encoded(k)), (f"{k}.cls", b"0"))})
    data = whole.read_bytes()
    used = len(data.rstrip(b"\0"))
    assert ShardPictures(str(whole)).labels == [0, 0, 0]
    for length in range(1, used, 97):
        cut.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"shard '.*cut\.tar' is damaged"):
            ShardPictures(str(cut))
    # Between two files, where nothing else tells it.
    cut.write_bytes(data[: 4 * 512])
    with pytest.raises(ValueError, match="ends at byte 2048 without the mark of its end"):
        ShardPictures(str(cut))


@pytest.mark.parametrize(
    ("members", "found"),
    [
        (
            {"a.png": 1, "a.cls": b"0", "b.1.png": 2, "b.1.cls": b"1", "b.2.png": 3, "b.2.cls": b"2"},
            [(1, 0), (2, 1), (3, 2)],
        ),
        ({"n01.10.PNG": 1, "n01.10.cls": b"1"}, [(1, 1)]),
        ({"a.input.png": 1, "a.cls": b"3"}, [(1, 3)]),
        ({"a.png": 1, "a.seg.png": 2, "a.cls": b"0"}, [(1, 0)]),
        ({"./a.png": 1, "a.cls": b"1", "x/b.png": 2, "./x/b.cls": b"0"}, [(1, 1), (2, 0)]),
        ({"v1.0/a.png": 1, "v1.0/a.cls": b"1"}, [(1, 1)]),
        ({"a.PNG": 1, "a.CLS": b"1", "b.Tiff": 2, "b.Cls": b"0"}, [(1, 1), (2, 0)]),
        ({"__MACOSX/._a.png": 9, "._a.png": 9, "._a.cls": b"junk", "a.png": 1, "a.cls": b"1"}, [(1, 1)]),
        ({"a.cls": b"1", "a.json": b"{}", "a.png": 1}, [(1, 1)]),
    ],
    ids=["dots", "only dots", "named part", "other parts", "./", "dots in folders", "capitals", "hidden", "any order"],
)
def test_pictures_find_their_class(tmp_path, write_tar, members, found) -> None:
    kinds = {"png": "png", "tiff": "tiff"}
    data = {
        name: encoded(value, kinds[name.rpartition(".")[2].lower()]) if isinstance(value, int) else value
        for name, value in members.items()
    }
    source = ShardPictures(str(write_tar(tmp_path / "a.tar", data)))
    assert list(zip(shades(source), source.labels, strict=True)) == found


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "gif", "tiff", "ppm"])
def test_every_format_is_read_from_shards(tmp_path, write_tar, kind) -> None:
    members = {f"a.{kind}": encoded(40, kind), "a.cls": b"0"}
    assert shades(ShardPictures(str(write_tar(tmp_path / "a.tar", members)))) == [pytest.approx(40, abs=1)]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"a.txt": b"", "b.heic": b"", "b.cls": b"0"},
            r"hold no picture with a class; left out 3 files of .* \(b.cls, a.txt, b.heic\)",
        ),
        ({}, "hold no picture with a class$"),
        (
            {"a.0.png": b"", "a.1.png": b"", "a.cls": b"0"},
            "sample a in shard .* has several pictures, expected one: a.0.png, a.1.png",
        ),
        (
            {"a.png": b"", "a.jpg": b"", "a.cls": b"0"},
            "sample a in shard .* has several pictures, expected one: a.png, a.jpg",
        ),
        ({"b.1.png": b"", "b.2.cls": b"0"}, r"b.1.png in shard .* has no class"),
        ({"a.png": b"", "a.cls": b"-1"}, "a.cls in shard .* is '-1', expected a class number below 1,000,000"),
        ({"a.png": b"", "a.cls": b"9" * 20}, "a.cls in shard .* is '9999.*', expected a class number below 1,000,000"),
    ],
)
def test_shards_without_a_clear_selection_say_why(tmp_path, write_tar, members, message) -> None:
    with pytest.raises(ValueError, match=message):
        ShardPictures(str(write_tar(tmp_path / "a.tar", members)))


def test_what_a_shard_leaves_out_is_named_once(tmp_path, write_tar, caplog) -> None:
    members = {"a.png": encoded(1), "a.cls": b"0", "a.json": b"", "b.heic": b"", "b.cls": b"1", "a.seg.png": encoded(2)}
    path = write_tar(tmp_path / "a.tar", members)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("c.png")
        link.type, link.linkname = tarfile.LNKTYPE, "a.png"
        archive.addfile(link)
    for _ in range(2):
        assert ShardPictures(str(path)).labels == [0]
    (record,) = caplog.records
    assert (
        "left out 4 files of no sample that has a picture and a class (a.seg.png, b.cls, b.heic, ...)" in record.message
    )


@pytest.mark.parametrize(
    ("pack", "kind"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")], ids=["gz", "bz2", "xz"]
)
def test_a_compressed_shard_is_refused_by_name(tmp_path, write_tar, pack, kind) -> None:
    path = tmp_path / f"a.tar.{kind}"
    path.write_bytes(pack(write_tar(tmp_path / "a.tar", {"a.png": encoded(1), "a.cls": b"0"}).read_bytes()))
    with pytest.raises(ValueError, match=rf"shard '.*a.tar.{kind}' is compressed \({kind}\), expected a plain .tar"):
        ShardPictures(str(path))


def test_pictures_that_earlier_versions_left_out_change_the_fingerprint(tmp_path, write_tar) -> None:
    plain = {"a.png": encoded(1), "a.cls": b"0"}
    digits = []
    for name in ("b.png", "b.1.png", "b.tif"):
        path = write_tar(tmp_path / "a.tar", {**plain, name: encoded(2), f"{name.rpartition('.')[0]}.cls": b"1"})
        digits.append((path.stat().st_size, ShardPictures(str(path)).fingerprint))
    assert len({size for size, _ in digits}) == 1
    assert len({digit for _, digit in digits}) == 3
