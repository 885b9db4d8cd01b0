from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hiergen.evaluation.images.samples import open_samples


def test_samples_are_read_like_any_picture(tmp_path, caplog) -> None:
    upright = np.zeros((8, 12, 3), np.uint8)
    upright[:, :6] = 200
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(tmp_path / "a.PNG", exif=exif)
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(tmp_path / "b.tif", exif=exif)
    Image.fromarray(upright[..., 0].astype(np.uint16) * 257).save(tmp_path / "c.tiff")
    Image.fromarray(upright).save(tmp_path / "d.ppm")
    clear = np.concatenate([upright, np.full((8, 12, 1), 255, np.uint8)], -1)
    clear[:, 6:, 3] = 0
    Image.fromarray(clear).save(tmp_path / "e.webp", lossless=True)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    Image.fromarray(upright[:4]).save(tmp_path / ".ipynb_checkpoints" / "a.png")
    (tmp_path / "notes.txt").touch()
    samples = open_samples(str(tmp_path), 0)
    assert (samples.count, samples.size) == (5, (8, 12))
    images = samples.read(range(5)).permute(0, 2, 3, 1).numpy()
    for image in images[:4]:
        assert np.array_equal(image, upright)
    assert (images[4, :, :6] == 200).all()
    assert (images[4, :, 6:] == 255).all()
    assert "left out what is no picture: 1 (notes.txt); hidden or a system's own: 1 (.ipynb_checkpoints)" in caplog.text


def test_a_sample_whose_head_is_wrong_about_its_sides_is_named(tmp_path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 12)).save(path, exif=exif)
    data = path.read_bytes()
    # The note on orientation behind the pixels, where the standard allows it too.
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    tail = data.index(b"IEND") - 4
    path.write_bytes(data[:start] + data[end:tail] + data[start:end] + data[tail:])
    samples = open_samples(str(tmp_path), 0)
    with pytest.raises(ValueError, match=r"sample '.*a\.png' is 12 x 8 pixels when read, expected 8 x 12"):
        samples.read(range(1))
