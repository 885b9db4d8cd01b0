"""A whole run, by the command line, on file systems that fail: a clear error, exit code 1, and the earlier checkpoint intact.

The file systems are real: mounts that a forked child makes for itself alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import io
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy

from hiergen.__main__ import main
from hiergen.training import loop
from hiergen.training.checkpoints import checkpoint
from hiergen.training.checkpoints.checkpoint import find_checkpoint, find_problem, load_checkpoint
from hiergen.training.loop import fit

NEW_NAMES, NEW_USERS = 0x00020000, 0x10000000
READ_ONLY, REMOUNT, BIND, PRIVATE = 1, 32, 4096, 0x4000 | (1 << 18)
RECIPE = """import sys


def recipe():
    return sys.modules["toy"].toy_run("set by --out")
"""


def mount(source: str, target: Path, kind: str, flags: int, options: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [os.fsencode(word) for word in (source, target, kind)]
    if libc.mount(*words, ctypes.c_ulong(flags), options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, f"mount: {os.strerror(number)}")


def with_mounts_of_its_own() -> None:
    """Leave the mounts of all other processes; one that may not becomes root of a world of its own, where it may."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEW_NAMES):
        if libc.unshare(NEW_NAMES | NEW_USERS):
            number = ctypes.get_errno()
            raise OSError(number, f"unshare: {os.strerror(number)}")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    mount("none", Path("/"), "", PRIVATE)


def in_a_child(act: Callable[[], dict[str, Any]], answer: Path, *, has_mounts: bool) -> dict[str, Any]:
    """Return what `act` returns in a forked process; with mounts of its own, or skip where the system does not allow them."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            try:
                if has_mounts:
                    with_mounts_of_its_own()
            except OSError as error:
                found: dict[str, Any] = {"refused": str(error)}
            else:
                found = act()
            answer.write_text(json.dumps(found))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    found = json.loads(answer.read_text())
    if "refused" in found:
        pytest.skip(f"needs a mount of its own, which this system refuses ({found['refused']})")
    return found


def train(recipe: Path, out: Path, **changes: str) -> tuple[int, str]:
    """Return the exit code and the words of `hiergen train`."""
    heard = io.StringIO()
    words = [word for name, value in changes.items() for word in (f"--{name}", value)]
    with contextlib.redirect_stderr(heard):
        code = main(["train", str(recipe), "--out", str(out), *words])
    return code, heard.getvalue().splitlines()[-1]


def before_step(number: int, act: Callable[[], None]) -> None:
    """Let something happen when a run first comes to a step; for a process that ends soon."""
    step, acts = loop._Run._step, [act]

    def watched(self: Any, batch: Any) -> Any:
        if self.state.samples_seen == 8 * number and acts:
            acts.pop()()
        return step(self, batch)

    loop._Run._step = watched


def trained(out: Path) -> dict[str, Any]:
    """Return where the newest checkpoint is, and all of its numbers."""
    published = sorted((out / "checkpoints").glob("samples-*"))
    tensors, state = load_checkpoint(find_checkpoint(out / "checkpoints"))
    numbers = {f"{stem}.{name}": value.tolist() for stem, group in tensors.items() for name, value in group.items()}
    return {
        "problems": [find_problem(path) for path in published],
        "samples": state["samples_seen"],
        "numbers": numbers,
        "leftovers": [path.name for path in (out / "checkpoints").glob(".*")],
    }


def fill(folder: Path, spare: int) -> None:
    """Take all the space of a file system but this many bytes."""
    with open(folder / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(folder / "filler", max(0, (folder / "filler").stat().st_size - spare))


def set_read_only(path: Path, is_on: bool) -> None:
    mount("none", path, "", REMOUNT | BIND | (READ_ONLY if is_on else 0))


def on_a_folder_that_becomes_read_only(recipe: Path, out: Path) -> dict[str, Any]:
    """The checkpoints' folder, then all of it from the start, then the log: what a run holds open cannot be made so."""

    def lock_log() -> None:
        mount(str(log), log, "", BIND)
        set_read_only(log, True)

    checkpoints, log = out / "checkpoints", out / "log.jsonl"
    checkpoints.mkdir(parents=True)
    for path in (out, checkpoints):
        mount(str(path), path, "", BIND)
    before_step(5, functools.partial(set_read_only, checkpoints, True))
    errors = [train(recipe, out)]
    set_read_only(checkpoints, False)
    set_read_only(out, True)
    errors.append(train(recipe, out))
    set_read_only(out, False)
    left = trained(out)
    before_step(4, lock_log)
    errors.append(train(recipe, out))
    assert ctypes.CDLL(None).umount(os.fsencode(log)) == 0
    return {"errors": errors, "left": left, "again": train(recipe, out)[0], "end": trained(out)}


def on_a_folder_without_space(recipe: Path, out: Path, *, is_said_before: bool) -> dict[str, Any]:
    out.mkdir()
    mount("none", out, "tmpfs", 0, "size=1m")
    checkpoint.SPARE_BYTES = 200_000 if is_said_before else -(2**40)
    before_step(5, functools.partial(fill, out, 100_000 if is_said_before else 8192))
    found: dict[str, Any] = {"errors": [train(recipe, out)], "left": trained(out)}
    (out / "filler").unlink()
    return found | {"again": train(recipe, out)[0], "end": trained(out)}


def on_a_device_that_fails(recipe: Path, out: Path) -> dict[str, Any]:
    flush = os.fsync

    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before_step(5, lambda: setattr(os, "fsync", failing))
    found: dict[str, Any] = {"errors": [train(recipe, out)], "left": trained(out)}
    os.fsync = flush
    return found | {"again": train(recipe, out)[0], "end": trained(out)}


FAULTS: dict[str, tuple[Callable[[Path, Path], dict[str, Any]], list[str]]] = {
    "read-only": (
        on_a_folder_that_becomes_read_only,
        [
            "hiergen train: the checkpoint at 48 samples was not written: OSError: [Errno 30] Read-only file system: ",
            "cannot be written to (Read-only file system); choose another with --out",
            "hiergen train: the log at 40 samples was not written: OSError: [Errno 30] Read-only file system: ",
        ],
    ),
    "too little space": (
        functools.partial(on_a_folder_without_space, is_said_before=True),
        ["hiergen train: the checkpoint at 48 samples was not written: OSError: a checkpoint needs 20"],
    ),
    "no space": (
        functools.partial(on_a_folder_without_space, is_said_before=False),
        ["hiergen train: the checkpoint at 48 samples was not written: "],
    ),
    "input/output error": (
        on_a_device_that_fails,
        ["hiergen train: the checkpoint at 48 samples was not written: OSError: [Errno 5] Input/output error"],
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Any]:
    """What a run comes to that nothing happened to."""
    out = tmp_path_factory.mktemp("whole")
    fit(toy.toy_run(str(out)))
    return trained(out)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts of Linux")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_on_a_failing_file_system_ends_with_one_sentence_and_goes_on_later(fault, whole, tmp_path) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    act, messages = FAULTS[fault]
    found = in_a_child(
        lambda: act(recipe, tmp_path / "run"), tmp_path / "answer.json", has_mounts=act is not on_a_device_that_fails
    )
    assert [code for code, _ in found["errors"]] == [1] * len(messages)
    for (_, words), expected in zip(found["errors"], messages, strict=True):
        assert expected in words
    if fault == "no space":
        assert "No space left on device" in found["errors"][0][1]
    assert found["left"]["samples"] == 24
    assert found["left"]["problems"] == [None]
    assert found["left"]["leftovers"] == []
    assert found["again"] == 0
    assert found["end"] == whole
    assert whole["samples"] == 96


def test_partial_folders_are_passed_over_and_written_anew(whole, tmp_path, caplog) -> None:
    """One of a checkpoint that is yet to come, one newer than the last that is whole, and what a killed write leaves."""
    fit(toy.toy_run(str(tmp_path)))
    checkpoints = tmp_path / "checkpoints"
    newest = find_checkpoint(checkpoints)
    (newest / "manifest.json").unlink()
    (newest / "toy.safetensors").write_bytes(b"half")
    (checkpoints / ".tmp-samples-000000000096-x").mkdir()
    assert fit(toy.toy_run(str(tmp_path))).samples_seen == 96
    assert "checkpoint samples-000000000096 is passed over: manifest.json is missing" in caplog.text
    assert trained(tmp_path) == whole
