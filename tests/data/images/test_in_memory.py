from __future__ import annotations

from PIL import Image

from hiergen.data.config import DataConfig
from hiergen.data.images.in_memory import load_folder
from hiergen.data.sources import open_images


def test_a_folder_is_read_with_classes(tmp_path) -> None:
    for name in ("b/2.png", "a/1.png", "b/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (12, 9), (255, 0, 0)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    folder = load_folder(tmp_path, size=8)
    assert folder.classes == ("a", "b")
    assert folder.labels.tolist() == [0, 1, 1]
    assert folder.images.shape == (3, 3, 8, 8)
    assert open_images(DataConfig(source=str(tmp_path), size=8)).fingerprint == folder.fingerprint
    batch = folder.batch([(2, 0), (0, 5)], seed=0)
    assert batch["label"].tolist() == [1, 0]
