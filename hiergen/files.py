"""Writing files so that a reader never sees half of one: temporary name, flush to disk, rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

_FAILED_WRITE = re.compile(r"Error while serializing: I/O error: .*\(os error (\d+)\)")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it and rename it to `path`, on error remove it.

    The temporary name ends in the same suffix, because several writers choose their format by it.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".tmp-{final.stem}-", suffix=final.suffix, dir=final.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _raising_os_errors(final):
            yield temporary
        # mkstemp makes files private; a result should have the permissions any new file gets.
        temporary.chmod(0o666 & ~_umask())
        flush(temporary)
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)
    flush(final.parent)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder; on success flush its files and rename it to `path`, replacing what was there.

    The old folder is renamed away before it is deleted, so `path` never names a half-deleted folder.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{final.name}-", dir=final.parent))
    try:
        with _raising_os_errors(final):
            yield temporary
        temporary.chmod(0o777 & ~_umask())
        for file in sorted(temporary.rglob("*")):
            flush(file)
        flush(temporary)
        remove_directory(final)
        os.rename(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    flush(final.parent)


@contextlib.contextmanager
def _raising_os_errors(path: Path) -> Iterator[None]:
    """Turn safetensors' own error for a disk that fails into an OSError, as all other writers raise."""
    try:
        yield
    except SafetensorError as error:
        failed = _FAILED_WRITE.match(str(error))
        if failed is None:
            raise
        number = int(failed[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def remove_directory(path: str | os.PathLike[str]) -> None:
    """Delete the folder `path` if it exists: rename first, so that a kill half-way leaves no broken folder of its name."""
    target = Path(path)
    if not target.exists():
        return
    doomed = Path(tempfile.mkdtemp(prefix=f".del-{target.name}-", dir=target.parent))
    os.rename(target, doomed / target.name)
    shutil.rmtree(doomed, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `path`, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON to `path`, atomically. NaN and infinity are refused (they are not JSON)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(folder: str | os.PathLike[str], *, option: str = "--out") -> Path:
    """Create `folder` if needed and return it as a `Path`; `option` is the option that a user sets it with.

    Raises:
        ValueError: If the folder cannot be created or written to, with the reason of the operating system.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".tmp-probe-"):
            pass
    except OSError as error:
        raise ValueError(
            f"output folder {str(path)!r} cannot be written to ({error.strerror}); choose another with {option}"
        ) from error
    return path


@contextlib.contextmanager
def sole_writer(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, no other process that asks for it may write to `folder`; a process that is killed holds nothing.

    A file system without locks lets all of them write.

    Raises:
        ValueError: If another process is writing.
    """
    # Not on all systems, and nothing else here needs it.
    import fcntl

    with open(Path(folder) / ".lock", "a") as file:
        try:
            # Not `flock`: that would be held on by the data workers of a process that was killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(
                    f"another process is writing to {str(folder)!r}: wait for its end, or choose another folder with --out"
                ) from None
        yield


def flush(path: Path) -> None:
    """Ask the operating system to bring a file's content, or a folder's list of names, to disk: a rename must survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
