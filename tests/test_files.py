from __future__ import annotations

import json
import os
import stat

import pytest
from safetensors import SafetensorError

from hiergen.files import atomic_directory, atomic_path, check_writable, remove_directory, write_json


def test_an_error_while_writing_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text(str(1 / 0))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_directory_is_replaced_whole(tmp_path) -> None:
    for content in ("one", "two"):
        with atomic_directory(tmp_path / "d") as temporary:
            (temporary / content).write_text(content)
    assert os.listdir(tmp_path / "d") == ["two"]
    assert os.listdir(tmp_path) == ["d"]
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "d") as temporary:
        (temporary / "three").write_text(str(1 / 0))
    assert os.listdir(tmp_path / "d") == ["two"]
    remove_directory(tmp_path / "d")
    remove_directory(tmp_path / "d")
    assert os.listdir(tmp_path) == []


def test_results_get_the_permissions_of_any_new_file(tmp_path) -> None:
    (tmp_path / "plain").write_text("")
    write_json(tmp_path / "result.json", {"a": 1})
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": 1}
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "result.json")}
    assert len(modes) == 1


def test_nan_is_not_json(tmp_path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert os.listdir(tmp_path) == []


def test_an_unwritable_folder_is_explained(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to"):
        check_writable(tmp_path / "file" / "below")


@pytest.mark.parametrize("writes", [atomic_path, atomic_directory])
def test_what_safetensors_says_of_a_failing_disk_is_an_oserror(tmp_path, writes) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '.*there.*'") as raised, writes(tmp_path / "there"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert raised.value.errno == 28
    with pytest.raises(SafetensorError, match="header too large"), writes(tmp_path / "there"):
        raise SafetensorError("Error while deserializing header: header too large")
    assert not list(tmp_path.iterdir())
