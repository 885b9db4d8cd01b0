from __future__ import annotations

import os

import pytest
import torch

from hiergen.pretrained.weights import read_weights


def test_foreign_files_are_refused_by_name(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"'.*missing.pth' does not exist"):
        read_weights(str(tmp_path / "missing.pth"))
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is of kind '\.npz'"):
        read_weights(str(tmp_path / "a.npz"))
    (tmp_path / "a.safetensors").write_bytes(b"garbage!")
    with pytest.raises(ValueError, match="is damaged"):
        read_weights(str(tmp_path / "a.safetensors"))
    (tmp_path / "a.pth").write_bytes(b"garbage")
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        read_weights(str(tmp_path / "a.pth"))
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, expected a dictionary"):
        read_weights(str(tmp_path / "list.pth"))


def test_code_in_a_pickle_is_not_run(tmp_path) -> None:
    canary = tmp_path / "canary"

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(canary),)

    torch.save({"weight": Attack()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        read_weights(str(tmp_path / "evil.pth"))
    assert not canary.exists()
