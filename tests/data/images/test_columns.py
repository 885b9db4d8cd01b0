from __future__ import annotations

import io
import math

import pytest
from PIL import Image

from hiergen.data.config import DataConfig
from hiergen.data.images.archives import HubPictures
from hiergen.data.images.columns import classes_of
from hiergen.data.sources import open_images

datasets = pytest.importorskip("datasets")


def picture(shade: int = 0) -> dict:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def save(path, columns: dict, kinds: dict) -> str:
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    table.save_to_disk(str(path))
    return str(path)


@pytest.mark.parametrize(
    ("labels", "names", "found", "classes"),
    [
        ([1, 0], ["ape", "cat"], [1, 0], ("ape", "cat")),
        ([2, 0], None, [2, 0], ("0", "1", "2")),
        ([1.0, 0.0], None, [1, 0], ("0", "1")),
        ([True, False], None, [1, 0], ("False", "True")),
        (["dog", "cat", "dog"], None, [1, 0, 1], ("cat", "dog")),
        (["10", "9"], None, [1, 0], ("9", "10")),
    ],
)
def test_labels_become_classes(labels, names, found, classes) -> None:
    assert classes_of(labels, names, "the column 'label' of 'set'") == (found, classes)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, -1], ["a", "b"], "row 1 of the column 'label' of 'set' is -1, which stands for no label, expected 0 to 1"),
        ([0, -1], None, "row 1 .* is -1, which stands for no label"),
        ([0, 2], ["a", "b"], "row 1 .* is 2, expected 0 to 1"),
        ([0, -7], None, "row 1 .* is -7, expected 0 to 999999"),
        ([10**12], None, "row 0 .* is 1000000000000, expected 0 to 999999"),
        ([0, None], None, "row 1 .* holds no label"),
        (["cat", None], None, "row 1 .* holds no label"),
        ([0.0, math.nan], None, "row 1 .* holds no label"),
        ([0.0, 0.5], None, "row 1 .* is 0.5, expected whole numbers from 0 on, or texts alone"),
        ([0.0, math.inf], None, "row 1 .* is inf, expected whole numbers"),
        (["cat", 1], None, "row 0 .* is 'cat', expected whole numbers"),
        ([[1], [2]], None, r"row 0 .* is \[1\], expected whole numbers"),
    ],
)
def test_labels_of_no_class_are_refused_by_row(labels, names, message) -> None:
    with pytest.raises(ValueError, match=message):
        classes_of(labels, names, "the column 'label' of 'set'")


def test_texts_in_a_saved_dataset_are_classes(tmp_path) -> None:
    kinds = {"image": datasets.Image(), "label": datasets.Value("string")}
    place = save(tmp_path / "set", {"image": [picture()] * 2, "label": ["dog", "cat"]}, kinds)
    data = open_images(DataConfig(source=f"hf:{place}", size=8, in_memory=False))
    assert data.classes == ("cat", "dog")
    assert data.batch([(0, 0), (1, 0)], seed=0)["label"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("image", "labels", "chosen"),
    [
        ("img", ["fine_label", "coarse_label"], "fine_label"),
        ("Image", ["Label"], "Label"),
        ("img", ["category", "class"], "class"),
        ("scan", ["species"], "species"),
        ("jpg", ["cls", "json"], "cls"),
    ],
)
def test_columns_of_other_names_are_found_and_said(tmp_path, caplog, image, labels, chosen) -> None:
    kinds = {image: datasets.Image(), **{name: datasets.ClassLabel(names=["a", "b", "c"]) for name in labels}}
    columns = {image: [picture(9)] * 2, **{name: [k, 0] for k, name in enumerate(labels, 1)}}
    source = HubPictures(save(tmp_path / "set", columns, kinds))
    assert source.labels == [1 + labels.index(chosen), 0]
    assert source.read(0).getpixel((0, 0)) == (9, 0, 0)
    assert f"is read from the column {image!r}: image_column names another one" in caplog.text
    assert f"is read from the column {chosen!r}" in caplog.text
    assert all(f"not from {name}" in caplog.text for name in labels if name != chosen)


def test_columns_can_be_said_and_change_the_fingerprint(tmp_path) -> None:
    names = datasets.ClassLabel(names=["a", "b"])
    kinds = {"image": datasets.Image(), "scan": datasets.Image(), "label": names, "other": names}
    columns = {"image": [picture(1)], "scan": [picture(2)], "label": [0], "other": [1]}
    place = save(tmp_path / "set", columns, kinds)
    config = {"source": f"hf:{place}", "size": 8, "in_memory": False}
    usual = open_images(DataConfig(**config))
    other = open_images(DataConfig(**config, image_column="scan", label_column="other"))
    assert (usual.source.labels, other.source.labels) == ([0], [1])
    assert other.source.read(0).getpixel((0, 0)) == (2, 0, 0)
    assert usual.fingerprint != other.fingerprint
    with pytest.raises(ValueError, match=r"has the columns .*, expected also photo; image_column names another one"):
        open_images(DataConfig(**config, image_column="photo"))
    with pytest.raises(ValueError, match="label_column 'x', but 'digits' has no columns"):
        open_images(DataConfig(label_column="x"))


def test_columns_that_are_not_there_or_hold_something_else_are_named(tmp_path) -> None:
    whole = datasets.Value("int64")
    with pytest.raises(ValueError, match="has the columns x, y, expected also image; image_column names another one"):
        HubPictures(save(tmp_path / "a", {"x": [1], "y": [2]}, {"x": whole, "y": whole}))
    with pytest.raises(ValueError, match=r"the column 'image' of .* holds no images but Value"):
        HubPictures(save(tmp_path / "b", {"image": [1], "label": [2]}, {"image": whole, "label": whole}))
    kinds = {"image": datasets.Image(), "label": whole}
    with pytest.raises(ValueError, match="is no dataset that `save_to_disk` wrote, or one without rows"):
        HubPictures(save(tmp_path / "c", {"image": [], "label": []}, kinds))


@pytest.mark.parametrize("missing", [None, {"bytes": None, "path": None}])
def test_a_row_without_a_picture_is_named_and_passed_over(tmp_path, missing) -> None:
    plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    kinds = {"image": datasets.Image() if missing is None else plain, "label": datasets.Value("int64")}
    place = save(tmp_path / "set", {"image": [picture(), missing], "label": [0, 1]}, kinds)
    source = HubPictures(place)
    with pytest.raises(ValueError, match=r"row 1 of the column 'image' of '.*set' holds no picture"):
        source.read(1)
    data = open_images(DataConfig(source=f"hf:{place}", size=8, in_memory=False))
    assert data.batch([(1, 0)], seed=0)["is_substitute"].tolist() == [True]
    with pytest.raises(ValueError, match="row 1 of the column 'image'"):
        open_images(DataConfig(source=f"hf:{place}", size=8, in_memory=False), is_strict=True).batch([(1, 0)], seed=0)
