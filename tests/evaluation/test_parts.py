"""Long passes in parts: what is read ahead, what stops them, and how processes find each other."""

from __future__ import annotations

import dataclasses
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from torch.multiprocessing import start_processes

from hiergen.evaluation import protocol
from hiergen.evaluation.parts import prefetched, run_parts
from hiergen.evaluation.protocol import process_state
from hiergen.evaluation.settings import PassConfig


def test_reading_ahead_keeps_the_order_and_never_holds_more_than_its_threads() -> None:
    lock, running, most, given = threading.Lock(), 0, 0, 0

    def load(key: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            # Three in flight, and the one that is being handed over.
            assert key - given <= 3
        # Later keys are ready first.
        time.sleep(0.002 * (3 - key % 3))
        with lock:
            running -= 1
        return key * key

    found = []
    for key, value in prefetched(load, list(range(20)), workers=3):
        found.append((key, value))
        given = key + 1
    assert found == [(key, key * key) for key in range(20)]
    assert 2 <= most <= 3
    assert list(prefetched(load, [5, 4], workers=0)) == [(5, 25), (4, 16)]
    assert list(prefetched(load, [], workers=2)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_reading_thread_stops_the_pass_at_its_batch(tmp_path: Path, workers: int) -> None:
    """What was finished before stays, and the next run continues from there."""
    is_repaired = False

    def load(keys: range) -> int:
        if 5 in keys and not is_repaired:
            raise ValueError("picture 5 is broken")
        return keys[0]

    computed: list[int] = []

    def compute(keys: range, first: int) -> dict[str, torch.Tensor]:
        assert first == keys[0]
        computed.extend(keys)
        return {"x": torch.tensor([10 * key for key in keys])}

    passes = PassConfig(batch_size=2, part_size=4, workers=workers, device="cpu")

    def run() -> Any:
        return run_parts(tmp_path, {"a": 1}, 10, compute, passes=passes, what="test", load=load)

    with pytest.raises(ValueError, match="picture 5 is broken"):
        run()
    assert computed == [0, 1, 2, 3]
    assert sorted(path.name for path in tmp_path.glob("part-*")) == ["part-00000.safetensors"]
    is_repaired = True
    parts = run()
    assert parts.read("x").tolist() == [10 * key for key in range(10)]
    assert computed == list(range(10))


def test_exact_groups_are_the_same_for_any_batch_and_part_size(tmp_path: Path) -> None:
    seen = set()
    for batch_size, part_size in ((1, 1), (4, 7), (64, 512)):
        groups: list[tuple[range, list[int]]] = []

        def compute(keys: range, loaded: torch.Tensor | None, groups: list = groups) -> dict[str, torch.Tensor]:
            groups.append((keys, [] if loaded is None else loaded.tolist()))
            return {"x": torch.tensor(list(keys))}

        passes = PassConfig(batch_size=batch_size, part_size=part_size, workers=1, device="cpu", exact=3)
        for load in (None, lambda keys: torch.tensor(list(keys))):
            folder = tmp_path / f"{batch_size}-{load is None}"
            parts = run_parts(folder, {}, 10, compute, passes=passes, what="test", load=load)
            assert parts is not None
            assert parts.read("x").tolist() == list(range(10))
        ranges = [range(0, 3), range(3, 6), range(6, 9), range(9, 10)]
        assert groups == [(keys, []) for keys in ranges] + [(keys, list(keys)) for keys in ranges]
        seen.add(len(parts.paths))
    assert seen == {4, 2, 1}


def test_parts_that_are_missing_are_shared_by_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six parts, 0, 2 and 4 are there: process 0 of two takes the first and the third of the others, process 1 the second."""

    def compute(keys: range, _: None) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor(list(keys))}

    def run() -> None:
        passes = PassConfig(batch_size=1, part_size=1, device="cpu")
        run_parts(tmp_path, {}, 6, compute, passes=passes, what="test")

    run()
    for index in (1, 3, 5):
        (tmp_path / f"part-{index:05d}.safetensors").unlink()
    seen = [path.name for path in tmp_path.glob("part-*")]

    @dataclasses.dataclass
    class Half:
        process_index: int
        num_processes = 2

        @property
        def is_main_process(self) -> bool:
            return self.process_index == 0

        def wait_for_everyone(self) -> None:
            pass

    monkeypatch.setattr("hiergen.evaluation.parts.process_state", lambda: Half(0))
    run()
    made = sorted(path.name for path in tmp_path.glob("part-*") if path.name not in seen)
    assert made == ["part-00001.safetensors", "part-00005.safetensors"]


def _count_processes(rank: int, port: int, folder: str) -> None:
    # What torchrun sets.
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    state = process_state()
    (Path(folder) / f"{rank}").write_text(f"{state.num_processes} {state.process_index} {state.is_main_process}")


@pytest.mark.skipif(
    torch.accelerator.is_available(), reason="with an accelerator Accelerate finds the others by itself"
)
def test_processes_that_torchrun_starts_on_cpus_find_each_other(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Children start from a parent that knows of no other process.
    PartialState._reset_state()
    start_processes(_count_processes, args=(port, str(tmp_path)), nprocs=2, start_method="fork")
    assert [(tmp_path / name).read_text() for name in "01"] == ["2 0 True", "2 1 False"]


@pytest.mark.usefixtures("unchecked")
def test_the_cpu_is_asked_for_only_where_it_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(protocol, "PartialState", lambda cpu, timeout: asked.append(cpu))
    for world, has_accelerator in (("1", False), ("2", False), ("2", True)):
        monkeypatch.setenv("WORLD_SIZE", world)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda found=has_accelerator: found)
        process_state()
    assert asked == [False, True, False]
