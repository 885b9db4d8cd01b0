from __future__ import annotations

import fractions
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from hiergen.pretrained.weights import Frozen, read_checkpoint, read_state_dict


def test_foreign_files_are_refused_by_name(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"'.*missing.pth' does not exist"):
        read_checkpoint(str(tmp_path / "missing.pth"))
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is of kind '\.npz'"):
        read_checkpoint(str(tmp_path / "a.npz"))
    (tmp_path / "a.safetensors").write_bytes(b"garbage!")
    with pytest.raises(ValueError, match="is damaged"):
        read_checkpoint(str(tmp_path / "a.safetensors"))
    (tmp_path / "a.pth").write_bytes(b"garbage")
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        read_checkpoint(str(tmp_path / "a.pth"))
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, expected a dictionary"):
        read_checkpoint(str(tmp_path / "list.pth"))


def test_code_in_a_pickle_is_not_run(tmp_path) -> None:
    canary = tmp_path / "canary"

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(canary),)

    torch.save({"weight": Attack()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        read_checkpoint(str(tmp_path / "evil.pth"))
    assert not canary.exists()


def test_a_checkpoint_may_be_nested_and_a_state_dict_may_not(tmp_path) -> None:
    weight = torch.arange(3.0)
    torch.save({"ema": {"weight": weight}, "epoch": 3}, tmp_path / "whole.pth")
    torch.save({"weight": weight}, tmp_path / "flat.pth")
    assert torch.equal(read_checkpoint(tmp_path / "whole.pth")["ema"]["weight"], weight)
    assert torch.equal(read_state_dict(tmp_path / "flat.pth")["weight"], weight)
    with pytest.raises(ValueError, match="holds no flat table of tensors, expected a state_dict"):
        read_state_dict(tmp_path / "whole.pth")


def test_a_frozen_network_is_no_part_of_what_holds_it() -> None:
    holder = nn.Module()
    holder.teacher = Frozen(nn.Dropout(0.5).train())
    assert list(holder.state_dict()) == [] == list(holder.modules())[1:]
    x = torch.randn(3)
    holder.train()
    assert torch.equal(holder.teacher.on(x.device)(x), x)


def test_what_a_pickle_holds_beside_tensors_is_named_and_not_run(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1), "share": fractions.Fraction(1, 2)}, tmp_path / "w.ckpt")
    with pytest.raises(ValueError, match=r"\(UnpicklingError\): it holds fractions.Fraction, which would run code"):
        read_checkpoint(tmp_path / "w.ckpt")
