from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from hiergen import environment
from hiergen.__main__ import main
from hiergen.environment import SPIN_COUNT, choose_device, choose_dtype, free_cores, require, share_cores


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


@pytest.mark.parametrize(
    ("device", "has", "expected", "said"),
    [
        ("cpu", {"_is_amx_tile_supported", "_is_avx512_bf16_supported"}, torch.bfloat16, "the processor, by AMX,"),
        ("cpu", {"_is_avx512_bf16_supported"}, torch.bfloat16, "the processor, by AVX512-BF16,"),
        ("cpu", set(), torch.float32, "this CPU is not known to compute products in bfloat16 fast"),
        ("cuda", {"is_bf16_supported"}, torch.bfloat16, "whose products the GPU computes fast"),
        ("cuda", set(), torch.float32, "this CUDA is not known"),
        ("meta", set(), torch.float32, "this META is not known"),
    ],
)
def test_a_number_format_is_chosen_by_the_device_and_told(device, has, expected, said, monkeypatch, capsys) -> None:
    for module, name in (
        (torch.cpu, "_is_amx_tile_supported"),
        (torch.cpu, "_is_avx512_bf16_supported"),
        (torch.cuda, "is_bf16_supported"),
    ):
        monkeypatch.setattr(module, name, lambda name=name, **_: name in has)
    assert choose_dtype(torch.device(device)) == expected
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dtype auto: {str(expected).removeprefix('torch.')}, ")
    assert said in line


def write_stat(path: Path, idle: list[int], busy: list[int]) -> None:
    lines = [
        f"cpu{core} {b} 0 0 {i} 0 0 0 0 0 0"
        for core, i, b in zip(sorted(os.sched_getaffinity(0)), idle, busy, strict=True)
    ]
    path.write_text("\n".join(["cpu 0 0 0 0 0 0 0 0 0 0", *lines, "intr 5"]))


def test_cores_that_others_use_are_not_free(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3})
    stat = tmp_path / "stat"
    write_stat(stat, [100, 100], [0, 0])
    # While the cores are watched, one is busy for all of the time and one for a half.
    monkeypatch.setattr(environment.time, "sleep", lambda _: write_stat(stat, [100, 110], [20, 10]))
    assert free_cores(stat=str(stat)) == (2, 0.5)
    assert free_cores(stat=str(tmp_path / "none"))[1] == os.cpu_count()


@pytest.mark.parametrize(("free", "threads"), [(4.0, None), (3.8, None), (3.2, "3"), (1.0, "1"), (0.1, "1")])
def test_there_are_no_more_threads_than_free_cores(monkeypatch, free, threads) -> None:
    clean(monkeypatch)
    monkeypatch.setattr(environment, "free_cores", lambda: (4, free))
    monkeypatch.delitem(sys.modules, "torch")
    said = share_cores()
    assert os.environ.get("OMP_NUM_THREADS") == threads
    assert os.environ["GOMP_SPINCOUNT"] == SPIN_COUNT
    assert said == (
        f"{free} of 4 cores are free: computing with {threads} (OMP_NUM_THREADS sets another number)" if threads else ""
    )


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_what_the_user_has_set_stays(monkeypatch, name) -> None:
    clean(monkeypatch)
    monkeypatch.setenv(name, "7")
    monkeypatch.setattr(environment, "free_cores", lambda: (4, 0.0))
    monkeypatch.delitem(sys.modules, "torch")
    share_cores()
    assert os.environ[name] == "7"
    assert ("GOMP_SPINCOUNT" in os.environ) == (name != "OMP_WAIT_POLICY")
    assert os.environ["OMP_NUM_THREADS"] == ("7" if name == "OMP_NUM_THREADS" else "1")


def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the settings away, so that what the function sets is taken back with them."""
    for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_short_verbs_watch_nothing(monkeypatch, capsys) -> None:
    clean(monkeypatch)
    monkeypatch.setattr(environment, "share_cores", lambda: pytest.fail("watched"))
    assert main(["env"]) == 0
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    capsys.readouterr()


def test_a_long_verb_says_what_it_chose(monkeypatch, capsys) -> None:
    monkeypatch.setattr(environment, "share_cores", lambda: "0.5 of 2 cores are free: computing with 1")
    assert main(["reconstruct", "--tokenizer", "no folder", "--images", "none"]) == 1
    assert capsys.readouterr().err.startswith("hiergen reconstruct: 0.5 of 2 cores are free: computing with 1\n")
