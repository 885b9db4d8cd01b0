from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch

from hiergen.environment import SPIN_COUNT, choose_device, require, wait_briefly


def test_a_package_that_is_there_is_returned() -> None:
    assert require("json", "eval", "a report") is json


@pytest.mark.parametrize(
    ("module", "package"), [("torch_fidelity_none", "torch-fidelity-none"), ("skimage.none", "scikit-image")]
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(module, package) -> None:
    with pytest.raises(ImportError, match=re.escape(f'a score needs {package}: pip install "hiergen[eval]"')):
        require(module, "eval", "a score")


def test_devices_by_name(monkeypatch) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == torch.device("cuda", 1)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="device is 'gpu', expected 'auto', 'cpu', or a GPU that is there"):
        choose_device("gpu")


@pytest.mark.parametrize("own", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY", ""])
def test_threads_wait_briefly_unless_the_user_has_said_how(monkeypatch, own) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    # Set by the function, so the test takes it back.
    monkeypatch.setenv("GOMP_SPINCOUNT", "")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    if own:
        monkeypatch.setenv(own, "7")
    assert wait_briefly() == {}, "PyTorch is here: it would be too late"
    monkeypatch.delitem(sys.modules, "torch")
    assert wait_briefly() == ({} if own else {"GOMP_SPINCOUNT": SPIN_COUNT})


def test_the_command_line_sets_it_before_torch_is_imported() -> None:
    code = "import sys; from hiergen.__main__ import main; main(['env'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.search(rf"GOMP_SPINCOUNT +{SPIN_COUNT}\b", done.stdout)
