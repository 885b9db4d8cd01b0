from __future__ import annotations

import errno
import importlib.util
import itertools
import os
import random
import shutil
import signal
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hiergen.environment import settle_threads
from hiergen.training.checkpoints import checkpoint
from hiergen.training.checkpoints.checkpoint import (
    find_checkpoint,
    find_problem,
    flatten_optimizer,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
    sweep,
)

_path = Path(__file__).parents[2] / "faults" / "damage_checkpoint.py"
_spec = importlib.util.spec_from_file_location("damage_checkpoint", _path)
damage_checkpoint = importlib.util.module_from_spec(_spec)
sys.modules["damage_checkpoint"] = damage_checkpoint
_spec.loader.exec_module(damage_checkpoint)

TENSORS = {"model": {"w": torch.arange(64.0), "b": torch.ones(3)}, "ema": {"w": torch.zeros(64)}}


def save(folder: Path, samples: int, keep_last: int = 2) -> Path:
    return save_checkpoint(folder, samples, TENSORS, {"samples_seen": samples}, keep_last)


def test_saved_is_loaded_and_the_oldest_is_pruned(tmp_path) -> None:
    for samples in (10, 20, 30):
        save(tmp_path, samples)
    assert sorted(os.listdir(tmp_path)) == ["samples-000000000020", "samples-000000000030"]
    path = find_checkpoint(tmp_path)
    tensors, state = load_checkpoint(path)
    assert state == {"samples_seen": 30}
    assert torch.equal(tensors["model"]["w"], TENSORS["model"]["w"])
    assert find_checkpoint(tmp_path / "nowhere") is None


def test_every_change_of_any_file_is_detected_and_the_file_is_named(tmp_path, monkeypatch) -> None:
    """200 seeded faults: a flipped bit, a cut or a deletion, in any file."""
    done, missed = damage_checkpoint.run(tmp_path, 200, seed=0)
    assert missed == []
    assert sum(done.values()) == 200
    assert min(done.values()) > 40
    monkeypatch.setattr(damage_checkpoint, "find_problem", lambda path: "another file")
    assert len(damage_checkpoint.run(tmp_path / "blind", 20, seed=0)[1]) > 10


def test_the_newest_valid_one_is_found_and_leftovers_are_swept_when_asked(tmp_path, caplog) -> None:
    for samples in (10, 20):
        save(tmp_path, samples)
    (tmp_path / "samples-000000000020" / "model.safetensors").write_bytes(b"")
    (tmp_path / ".tmp-samples-000000000030-x").mkdir()
    (tmp_path / ".del-samples-000000000005-x").mkdir()
    assert find_checkpoint(tmp_path).name == "samples-000000000010"
    assert "model.safetensors has 0 bytes" in caplog.text
    # They may be what a run that goes on is writing: whoever looks must not touch them.
    assert len(os.listdir(tmp_path)) == 4
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["samples-000000000010", "samples-000000000020"]


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch) -> None:
    save(tmp_path, 10)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage(100, 90, 10))
    with pytest.raises(OSError, match="has 10 free; the earlier ones are kept"):
        save(tmp_path, 20)
    assert os.listdir(tmp_path) == ["samples-000000000010"]


def test_a_failed_write_leaves_the_old_one(tmp_path, monkeypatch) -> None:
    save(tmp_path, 10)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", fail)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 20)
    assert find_problem(find_checkpoint(tmp_path)) is None
    assert os.listdir(tmp_path) == ["samples-000000000010"]


def test_optimizer_state_survives_flattening() -> None:
    weights = [torch.randn(3, requires_grad=True), torch.randn(2, 2, requires_grad=True)]
    first = torch.optim.AdamW(weights, lr=0.1, fused=True)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    first.step()
    second = torch.optim.AdamW(weights, lr=0.1, fused=True)
    restore_optimizer(second, flatten_optimizer(first))
    for a, b in zip(first.state.values(), second.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    with pytest.raises(ValueError, match="holds 2 parameters, this one 1"):
        restore_optimizer(torch.optim.AdamW(weights[:1]), flatten_optimizer(first))


def start_saver(folder: Path, start: int) -> tuple[int, int]:
    """Fork a process that does nothing but save and report; return its id and where its reports can be read."""
    reports, reporter = os.pipe()
    pid = os.fork()
    if pid:
        os.close(reporter)
        return pid, reports
    # The parent may have computed with several threads.
    settle_threads()
    tensors = {"model": {"w": torch.arange(400_000.0)}}
    for samples in range(start + 1, start + 10_000):
        save_checkpoint(folder, samples, tensors, {"samples_seen": samples}, 1)
        os.write(reporter, f"{samples}\n".encode())
    os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_while_saving_nothing_that_was_acknowledged_is_lost(tmp_path) -> None:
    """A process that does nothing but save is killed at random moments; what it reported as saved must be there, whole."""
    rng = random.Random(1)
    acknowledged = 0
    for _ in range(6):
        pid, reports = start_saver(tmp_path, acknowledged)
        with open(reports) as lines:
            first = [lines.readline() for _ in range(rng.randrange(1, 4))]
            time.sleep(rng.random() * 0.05)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            acknowledged = int([*first, *lines][-1])
        found = find_checkpoint(tmp_path)
        assert found is not None
        assert load_checkpoint(found)[1]["samples_seen"] >= acknowledged
        published = [path for path in tmp_path.iterdir() if path.name.startswith("samples-")]
        assert [find_problem(path) for path in published] == [None] * len(published)


#: What a commit is made of. `os.unlink` is where pruning deletes.
BOUNDARIES = ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "unlink"), (checkpoint, "save_file"))


def _interrupt(monkeypatch, at: int, act: Callable[[], None], boundaries=BOUNDARIES) -> None:
    """Call `act` at the given one of the moments before and after each call of the functions at `boundaries`."""
    moments = itertools.count()

    def reach() -> None:
        if next(moments) == at:
            act()

    def watched(function):
        def call(*args, **kwargs):
            reach()
            result = function(*args, **kwargs)
            reach()
            return result

        return call

    for place, name in boundaries:
        monkeypatch.setattr(place, name, watched(getattr(place, name)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_boundary_of_a_commit_a_whole_checkpoint_is_left(tmp_path, monkeypatch) -> None:
    """The third save prunes the first: every step of writing, publishing and pruning is killed once."""
    outcomes = []
    two = save(tmp_path / "two", 10).parent
    save(two, 20)
    for at in itertools.count():
        folder = tmp_path / str(at)
        shutil.copytree(two, folder)
        pid = os.fork()
        if not pid:
            _interrupt(monkeypatch, at, lambda: os.kill(os.getpid(), signal.SIGKILL))
            save(folder, 30)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
            break
        found = find_checkpoint(folder)
        assert [find_problem(path) for path in folder.glob("samples-*")] == [None] * len(list(folder.glob("samples-*")))
        outcomes.append(load_checkpoint(found)[1]["samples_seen"])
        save(folder, 30)
        assert load_checkpoint(find_checkpoint(folder))[1]["samples_seen"] == 30
    # First the old one is the newest, then, from one moment on, the new one.
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {20, 30}
    assert len(outcomes) >= 24


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_an_error_at_any_boundary_is_raised_and_a_whole_checkpoint_is_left(tmp_path, monkeypatch, code) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    two = save(tmp_path / "two", 10).parent
    save(two, 20)
    for at in itertools.count():
        folder = tmp_path / str(at)
        shutil.copytree(two, folder)
        with monkeypatch.context() as patch:
            _interrupt(patch, at, fail, boundaries=[pair for pair in BOUNDARIES if pair[1] != "unlink"])
            raised: list[int | None] = []
            try:
                save(folder, 30)
            except OSError as error:
                raised.append(error.errno)
        if not raised:
            break
        assert raised == [code]
        assert find_problem(find_checkpoint(folder)) is None
        save(folder, 30)
        assert load_checkpoint(find_checkpoint(folder))[1]["samples_seen"] == 30
    assert at >= 16


def test_a_partial_folder_of_the_same_name_is_replaced(tmp_path) -> None:
    save(tmp_path, 10)
    partial = tmp_path / "samples-000000000020"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    assert find_checkpoint(tmp_path).name == "samples-000000000010"
    assert find_problem(save(tmp_path, 20)) is None
