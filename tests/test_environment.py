from __future__ import annotations

import json
import re

import pytest
import torch

from hiergen.environment import choose_device, require


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
