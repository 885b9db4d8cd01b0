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
from hiergen.data.sources import open_images

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
