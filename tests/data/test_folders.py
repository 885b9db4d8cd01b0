from __future__ import annotations

from pathlib import Path

import pytest

from hiergen.data.files.folders import class_names, class_order, is_hidden, list_files
from hiergen.data.images.files import list_images
from hiergen.data.videos.files import list_videos


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_the_class_is_the_first_folder() -> None:
    paths = [Path("set/a/1.png"), Path("set/b/deep/2.png"), Path("set/3.png")]
    assert class_names(paths, "set") == ["a", "b", ""]


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints/a.png",
        "cats/.ipynb_checkpoints/a.png",
        "__MACOSX/cats/a.png",
        "cats/._a.png",
        "@eaDir/a.png",
        "$RECYCLE.BIN/a.png",
        "System Volume Information/a.png",
        "lost+found/a.png",
        ".git/a.png",
        "cats/.hidden.png",
    ],
)
def test_what_systems_hide_is_no_picture_no_clip_and_no_class(tmp_path, name, caplog) -> None:
    hidden = name.replace(".png", ".gif")
    touch(tmp_path, "cats/b.gif", hidden)
    for listing in (list_images, list_videos):
        assert listing(tmp_path) == [tmp_path / "cats/b.gif"]
    assert "hidden or a system's own: 1 (" in caplog.text
    assert is_hidden(name)


def test_a_hidden_folder_that_is_asked_for_is_read(tmp_path, caplog) -> None:
    touch(tmp_path, ".cache/set/a.png", ".cache/set/Thumbs.db", ".cache/set/desktop.ini", ".cache/set/.DS_Store")
    assert list_images(tmp_path / ".cache/set") == [tmp_path / ".cache/set/a.png"]
    # Notes of a system beside pictures are no news.
    assert not caplog.text


def test_what_is_left_out_is_counted_and_named_once(tmp_path, caplog) -> None:
    touch(tmp_path, "a.png", "b.txt", "c.heic", "d.svg", "e/f.psd", "real/g.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for _ in range(2):
        assert len(list_images(tmp_path)) == 2
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message == (
        f"image folder '{tmp_path}': left out what is no picture: 4 (b.txt, c.heic, d.svg, ...); a link to a folder: 1 (link)"
    )


def test_a_folder_without_any_says_what_it_holds(tmp_path) -> None:
    touch(tmp_path, "b.txt", ".thumbs/c.png")
    with pytest.raises(
        ValueError, match=r"holds no picture \(.*\); left out what is no picture: 1 \(b.txt\); hidden .* 1"
    ):
        list_images(tmp_path)


def test_a_folder_named_like_a_picture_is_none_and_a_broken_link_is_one(tmp_path) -> None:
    touch(tmp_path, "a.png/b.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "nothing")
    assert list_files(tmp_path, [".png"], kind="image", what="picture") == [
        tmp_path / "a.png/b.png",
        tmp_path / "c.png",
    ]


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["10", "2", "1"], ("1", "2", "10")),
        (["class-10", "class-9"], ("class-9", "class-10")),
        (["1", "01", "1"], ("01", "1")),
        # Apart from numbers, the order is that of the characters, as ever.
        (["a1", "a-b", "a:", "B"], ("B", "a-b", "a1", "a:")),
        (["n02", "n01"], ("n01", "n02")),
    ],
)
def test_classes_are_in_natural_order(names, order) -> None:
    assert class_order(names) == order
