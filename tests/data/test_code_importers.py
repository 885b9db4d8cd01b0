from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hiergen.data.code_importers import find_npy_folders, import_npy_codes
from hiergen.pyramid import LevelSpec

SPECS = tuple(LevelSpec(num_tokens=n, dim=2, vocab_size=9) for n in (1, 1, 2))


def write(root: Path, count: int) -> np.ndarray:
    rows = np.random.default_rng(0).integers(0, 9, (count, 10, 4))
    for name in ("codes", "labels"):
        (root / name).mkdir()
    for index in range(count):
        np.save(root / "codes" / f"{index}.npy", rows[index])
        np.save(root / "labels" / f"{index}.npy", np.int64(index % 2))
    return rows


def test_every_crop_becomes_a_variant(tmp_path) -> None:
    rows = write(tmp_path, 11)
    cache = import_npy_codes(tmp_path / "codes", tmp_path / "labels", tmp_path / "out", specs=SPECS)
    assert torch.equal(torch.cat(cache.levels, dim=2), torch.from_numpy(rows))
    assert cache.labels.tolist() == [index % 2 for index in range(11)]
    assert cache.classes == ("0", "1")
    drawn = torch.stack([cache.pyramid(cache.batch([(10, epoch)], seed=0)).concat()[0] for epoch in range(60)])
    assert {tuple(row) for row in drawn.tolist()} == {tuple(row) for row in rows[10].tolist()}


def test_damaged_files_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"holds no \.npy files of codes"):
        import_npy_codes(tmp_path, tmp_path, tmp_path / "out", specs=SPECS)
    write(tmp_path, 3)
    paths = (tmp_path / "codes", tmp_path / "labels", tmp_path / "out")
    np.save(paths[0] / "1.npy", np.zeros((10, 5), np.int64))
    with pytest.raises(ValueError, match=r"1\.npy' holds int64 \(10, 5\), expected integers \(None, 4\)"):
        import_npy_codes(*paths, specs=SPECS)
    np.save(paths[0] / "1.npy", np.full((10, 4), 9))
    with pytest.raises(ValueError, match="codes 0 to 2 run from 0 to 9, expected 0 to 8"):
        import_npy_codes(*paths, specs=SPECS)
    (paths[1] / "2.npy").unlink()
    with pytest.raises(ValueError, match=r"2\.npy' cannot be read"):
        import_npy_codes(*paths, specs=SPECS)


def test_the_two_folders_are_found_by_their_endings(tmp_path) -> None:
    for name in ("in_codes", "in_labels"):
        (tmp_path / name).mkdir()
    assert find_npy_folders(tmp_path) == (tmp_path / "in_codes", tmp_path / "in_labels")
    (tmp_path / "other_labels").mkdir()
    with pytest.raises(ValueError, match=r"holds in_labels, other_labels, expected one folder named \*_labels"):
        find_npy_folders(tmp_path)
    with pytest.raises(ValueError, match=r"holds none, expected one folder named \*_codes"):
        find_npy_folders(tmp_path / "in_codes")
