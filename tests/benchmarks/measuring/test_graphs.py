"""Capturing a call, with stand-ins that note what a GPU would be asked."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from hiergen.benchmarks.measuring.graphs import captured
from hiergen.generators.finite import FiniteSteps


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """What is asked of CUDA, in order; a replayed graph is noted as "replay"."""
    notes: list[str] = []

    class Stream:
        def __init__(self, device: Any = None) -> None:
            self.name = "beside" if device is not None else "current"

        def wait_stream(self, other: Any) -> None:
            notes.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self) -> None:
            notes.append("replay")

    @contextlib.contextmanager
    def noted(thing: Any):
        notes.append("begin " + ("capture" if isinstance(thing, Graph) else thing.name))
        yield
        notes.append("end")

    current = Stream()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "stream", noted)
    monkeypatch.setattr(torch.cuda, "graph", noted)
    return notes


def test_a_call_is_warmed_up_captured_once_and_replayed(asked) -> None:
    def call() -> int:
        asked.append("call")
        return len(asked)

    replay = captured(call, torch.device("cuda"), warmups=2)
    wanted = ["beside waits for current", "begin beside", "call", "call", "end", "current waits for beside"]
    assert asked == [*wanted, "begin capture", "call", "end"]
    first = replay()
    assert replay() == first == 8
    assert asked[-2:] == ["replay", "replay"]


def test_elsewhere_the_call_itself_is_returned() -> None:
    def call() -> int:
        return 1

    assert captured(call, torch.device("cpu")) is call


def test_nothing_is_asked_of_the_device_while_a_graph_is_captured(monkeypatch) -> None:
    finite = FiniteSteps("Model", "logits")
    finite.note(torch.tensor([float("nan")]), "step 0")
    stack = torch.stack

    class OnGPU(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(torch, "stack", lambda flags: stack(flags).as_subclass(OnGPU))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    finite.check()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with pytest.raises(FloatingPointError, match="Model gives NaN or infinity: logits at step 0"):
        finite.check()
