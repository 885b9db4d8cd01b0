"""Official weights by name: how they come into the cache, converted.

`hiergen.pretrained.official` has the table. `fetch` downloads the files through huggingface_hub (its cache, its offline mode, its mirrors),
converts them once, and keeps the converted model beside them.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hiergen.config import read_values
from hiergen.files import atomic_directory, file_digest
from hiergen.pretrained.official import OFFICIAL, Official
from hiergen.telling import say

#: Raised when a converter changes what it makes of the same file, so that no older conversion is read.
FORMAT = 1


def of_preset(preset: str) -> list[str]:
    """Return the names of the official weights of a preset: the preset's own name with a training behind it."""
    return [name for name in OFFICIAL if name.partition(".")[0] == preset]


def fetch(name: str) -> Path:
    """Return the folder that holds official weights in hiergen's layout; the first call downloads and converts them.

    The folder stands in the Hub's cache beside the files that it was made of. Where it is there already, nothing else is looked at and no
    network is needed. Several processes at once make it once.

    Args:
        name: A key of `OFFICIAL`.

    Raises:
        ValueError: If the weights cannot be downloaded, are gated, missing or not what they should be; the sentence says what to do.
        OSError: If the cache cannot be written to, or the disk is full.
    """
    row = OFFICIAL[name]
    if row.by_hand is not None or row.repository is None:
        raise ValueError(f"{name!r} cannot be downloaded by name: {row.by_hand}")
    target = _target(name, row)
    if (target / "config.json").is_file():
        return target
    from huggingface_hub.utils import WeakFileLock

    with _explaining_disk(name):
        target.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(target.parent / f".{target.name}.lock"):
            # Another process may have made it meanwhile.
            if not (target / "config.json").is_file():
                if row.is_restricted:
                    say(
                        f"{name}: the license of these weights is: {row.license}; https://huggingface.co/{row.repository}"
                    )
                model = convert(name, row, [_download(name, row, file) for file in row.files])
                with atomic_directory(target) as temporary:
                    model.save_pretrained(temporary)
    return target


def convert(name: str, row: Official, files: list[Path]) -> Any:
    """Return the model that official files hold.

    Raises:
        ValueError: If a file is no table of tensors, or not of this model.
    """
    module, _, function = row.converter.partition(":")
    # The table is read where nothing is loaded yet.
    from hiergen.pretrained.weights import read_checkpoint

    contents = {file.name: read_checkpoint(file) for file in files if file.suffix != ".json"}
    state: Any = contents if len(files) > 1 else next(iter(contents.values()))
    try:
        config = {**_read_configs(files), **row.config}
        return getattr(importlib.import_module(module), function)(state, config)
    except ValueError as error:
        raise ValueError(f"{name!r}: {', '.join(contents)} of {row.repository} does not fit: {error}") from error


def _read_configs(files: list[Path]) -> dict[str, Any]:
    """Return the entries of those files that hold an official configuration.

    Raises:
        ValueError: If one holds anything else.
    """
    entries: dict[str, Any] = {}
    for file in files:
        if file.suffix == ".json":
            found = read_values(str(file))
            if not isinstance(found, dict):
                raise ValueError(f"{file.name} holds a {type(found).__name__}, expected an object")
            entries |= found
    return entries


def _target(name: str, row: Official) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    # Whatever decides what is made of the files is in the folder's name: after a change nothing stale is read.
    made_from = repr((FORMAT, row.files, row.converter, sorted(row.config.items()), row.revision))
    key = hashlib.sha256(made_from.encode()).hexdigest()[:8]
    folder = repo_folder_name(repo_id=str(row.repository), repo_type="model")
    return Path(constants.HF_HUB_CACHE) / folder / "hiergen" / f"{name}-{key}"


def _download(name: str, row: Official, file: str) -> Path:
    """Return the file in the Hub's cache, checked, downloaded unless it is there."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    missing: list[Exception] = []
    for alternative in file.split("|"):
        try:
            path = Path(_ask(name, row, alternative))
        except EntryNotFoundError as error:
            missing.append(error)
            continue
        _check_digest(name, path, row.sha256.get(alternative))
        return path
    if any(isinstance(error, LocalEntryNotFoundError) for error in missing):
        from huggingface_hub import constants

        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "the Hub cannot be reached"
        raise ValueError(
            f"{name!r} is not in the cache {constants.HF_HUB_CACHE!r} yet, and {why}: call it once with a network"
        ) from missing[-1]
    at = "" if row.revision is None else f" at revision {row.revision!r}"
    raise ValueError(
        f"{name!r}: the repository {row.repository} holds no file {file.replace('|', ' or ')}{at}: it was renamed, or removed"
    ) from missing[-1]


def _ask(name: str, row: Official, file: str) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        # The client reads its endpoint once, when it is imported; a notebook may set it later.
        endpoint = os.environ.get("HF_ENDPOINT")
        return hf_hub_download(str(row.repository), file, revision=row.revision, endpoint=endpoint)
    except EntryNotFoundError:
        raise
    except GatedRepoError as error:
        raise ValueError(
            f"{name!r} is gated: accept its license at https://huggingface.co/{row.repository}, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{name!r}: the repository {row.repository} is not there, or is private; if you may read it, log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{name!r}: the repository {row.repository} has no revision {row.revision!r}") from error
    except Exception as error:
        # A cache that cannot be written to is explained by the caller. Otherwise the client's HTTP library raises errors of its own.
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, HfHubHTTPError):
            raise
        raise ValueError(
            f"{name!r}: the download of {file} from {row.repository} broke off ({error}); call it again to go on"
        ) from error


def _check_digest(name: str, path: Path, known: str | None) -> None:
    """Raise a ValueError, and forget the file, unless its digest is the one that is known, or that the Hub gave."""
    blob = path.resolve()
    # The cache names large files by the digest that the Hub says they have.
    expected = known or (blob.name if re.fullmatch("[0-9a-f]{64}", blob.name) else None)
    if expected is None:
        return
    found = file_digest(path)
    if found == expected:
        return
    for wrong in {path, blob}:
        wrong.unlink(missing_ok=True)
    raise ValueError(
        f"{name!r}: {path.name} has the SHA-256 {found}, expected {expected}: it was damaged on its way or replaced, and is deleted; "
        "call it again to download it anew"
    )


@contextmanager
def _explaining_disk(name: str) -> Iterator[None]:
    """Say of an operating system's refusal what was being written, and what to do."""
    from huggingface_hub import constants

    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, FileNotFoundError):
            raise
        todo = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
        raise OSError(
            error.errno,
            f"{name!r} cannot be written to the cache {constants.HF_HUB_CACHE!r} ({os.strerror(error.errno)}): {todo}, "
            "or set HF_HOME to another folder",
        ) from error
