from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hiergen.data.config import DataConfig
from hiergen.data.images.archives import HubPictures, NpzPictures
from hiergen.data.sources import open_captions, open_images, open_pictures
from hiergen.seeding import derive_seed

DATA = Path(os.environ.get("HIERGEN_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))


def encoded(shade: int, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (shade, 0, 0)).save(file, kind, **({"lossless": True} if kind == "webp" else {}))
    return file.getvalue()


def reds(data, count: int) -> list[int]:
    batch = data.batch([(index, 0) for index in range(count)], seed=0)
    return ((batch["image"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_hugging_face_datasets_on_disk(tmp_path, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ape", "cat"])})
    rows = {"image": [{"bytes": encoded(k), "path": None} for k in (5, 6)], "label": [1, 0]}
    table = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "set"))
    data = open_images(DataConfig(source=f"hf:{tmp_path / 'set'}", size=16, in_memory=False))
    assert data.classes == ("ape", "cat")
    assert reds(data, 2) == [5, 6]
    assert data.batch([(0, 0)], seed=0)["label"].tolist() == [1]
    with pytest.raises(ValueError, match=r"split is 'test', the dataset .* has train"):
        HubPictures(str(tmp_path / "set"), split="test")
    with pytest.raises(ValueError, match="has the columns image, label, expected also photo"):
        HubPictures(str(tmp_path / "set"), image="photo")
    with pytest.raises(ValueError, match="is no dataset that `save_to_disk` wrote"):
        HubPictures(str(tmp_path / "none"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'pip install "hiergen\[images\]"'):
        HubPictures(str(tmp_path / "set"))


def test_npz_archives(tmp_path) -> None:
    files = [encoded(k, "webp") for k in (40, 50, 60)]
    path = tmp_path / "set.npz"
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(
        path,
        webp=np.frombuffer(b"".join(files), np.uint8),
        offsets=offsets,
        labels=np.array([1, 0, 1], np.uint8),
        classes=np.array(["a", "b"]),
    )
    data = open_images(DataConfig(source=f"npz:{path}", size=16))
    assert data.classes == ("a", "b")
    assert reds(data, 3) == [40, 50, 60]
    assert data.labels.tolist() == [1, 0, 1]
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for name, what in (("other.npz", "is no archive of encoded images"), ("none.npz", "does not exist")):
        with pytest.raises(ValueError, match=rf"{name}' {what}"):
            NpzPictures(tmp_path / name)
    np.savez(tmp_path / "evil.npz", webp=np.array([{}], dtype=object), offsets=[0, 1], labels=[0], classes=["a"])
    with pytest.raises(ValueError, match=r"webp of '.*evil.npz' holds pickled Python objects"):
        NpzPictures(tmp_path / "evil.npz")


@pytest.mark.skipif(not (DATA / "caltech101-64").is_dir(), reason="the Caltech-101 archive is not here (HIERGEN_DATA)")
def test_caltech() -> None:
    source = NpzPictures(DATA / "caltech101-64" / "caltech101_64_25classes.npz")
    assert len(source.labels) == 2875
    assert len(source.classes) == 25
    assert source.read(2874).size == (64, 64)
    assert float(torch.tensor(np.asarray(source.read(0))).float().std()) > 5


def styled_archive(path: Path, count: int = 40) -> None:
    """Write `count` things in two styles, of two classes each."""
    files = [encoded(k, "webp") for k in range(2 * count)]
    np.savez(
        path,
        webp=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)]),
        labels=np.arange(2 * count) % count % 2,
        classes=np.array(["g/a", "g/b"]),
        styles=np.arange(2 * count) // count,
        style_names=np.array(["flat", "round"]),
        names=np.array([f"{style}/thing-{k}" for style in ("flat", "round") for k in range(count)]),
    )


def test_archives_are_divided_by_name_and_classes_joined(tmp_path) -> None:
    path = tmp_path / "set.npz"
    styled_archive(path)
    config = {
        "source": f"npz:{path}",
        "size": 16,
        "hold_out": 4,
        "hold_out_by": "name",
        "label_column": "labels+styles",
    }
    train, test = (open_pictures(DataConfig(**config, split=split)) for split in ("train", "test"))
    things = [{name.rpartition("/")[2] for name in side.names} for side in (train, test)]
    assert not things[0] & things[1]
    assert [len(names) for names in things] == [len(train.labels) // 2, len(test.labels) // 2]
    # A function of the name alone.
    assert things[1] == {f"thing-{k}" for k in range(40) if derive_seed("hold_out", f"thing-{k}") % 4 == 0}
    assert train.classes == ("g/a | flat", "g/a | round", "g/b | flat", "g/b | round")
    for side in (train, test):
        for name, label in zip(side.names, side.labels, strict=True):
            style, _, number = name.partition("/thing-")
            assert train.classes[label] == f"g/{'ab'[int(number) % 2]} | {style}"
    assert train.fingerprint != test.fingerprint
    assert open_images(DataConfig(**{**config, "label_column": "styles"})).classes == ("flat", "round")
    assert open_images(DataConfig(**config)).images.shape[0] == len(train.labels)


def test_texts_of_an_archive_are_its_captions(tmp_path) -> None:
    path = tmp_path / "set.npz"
    styled_archive(path, 4)
    assert open_captions(DataConfig(source=f"npz:{path}")) == ()
    arrays = dict(np.load(path))
    np.savez(path, **arrays, texts=np.array([f"text {k}" for k in range(8)]))
    assert open_captions(DataConfig(source=f"npz:{path}"))[5] == ("text 5",)
    odd = DataConfig(source=f"npz:{path}", split="test", hold_out=5, captions=("{text} of {name}",))
    assert open_captions(odd) == (("text 0 of thing 0",), ("text 5 of thing 1",))


def test_refusals_of_archives_divided_by_name(tmp_path) -> None:
    path = tmp_path / "set.npz"
    styled_archive(path, 2)
    source = f"npz:{path}"
    with pytest.raises(ValueError, match="lacks colors, color_names and holds"):
        open_pictures(DataConfig(source=source, label_column="labels+colors"))
    with pytest.raises(ValueError, match="hold_out is 1000 and leaves no 'test' of 4 pictures divided by name"):
        open_pictures(DataConfig(source=source, split="test", hold_out=1000, hold_out_by="name"))
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "names": arrays["names"][:3]})
    with pytest.raises(ValueError, match=r"names of .* are 3, expected 4, one per picture"):
        open_pictures(DataConfig(source=source))
    np.savez(path, **arrays, texts=np.array(["a"]))
    with pytest.raises(ValueError, match=r"texts of .* are 1, expected 4, one per picture"):
        open_pictures(DataConfig(source=source))
    np.savez(path, **{name: array for name, array in arrays.items() if name != "names"})
    with pytest.raises(ValueError, match="hold_out_by is 'name', but these pictures have no names"):
        open_pictures(DataConfig(source=source, hold_out=2, hold_out_by="name"))


@pytest.mark.skipif(not (DATA / "emoji-64").is_dir(), reason="the archive of emoji is not here (HIERGEN_DATA)")
def test_emoji() -> None:
    config = {"source": f"npz:{DATA / 'emoji-64' / 'emoji_64.npz'}", "hold_out": 10, "hold_out_by": "name"}
    train, test = (open_pictures(DataConfig(**config, split=split)) for split in ("train", "test"))
    assert (len(train.labels), len(test.labels), len(train.classes)) == (5882, 562, 95)
    assert test.read(561).size == (64, 64)
