from __future__ import annotations

import types

import pytest
import torch
import toy
from accelerate import Accelerator

from hiergen.training.reporting import meters
from hiergen.training.reporting.meters import Meter


def test_means_are_over_the_steps_that_had_a_term_and_begin_anew(tmp_path) -> None:
    accelerator, meter = Accelerator(cpu=True), Meter(toy.toy_run(str(tmp_path)), torch.device("cpu"))
    meter.add({"loss": torch.tensor(1.0)})
    meter.add({"loss": torch.tensor(3.0), "late": torch.tensor(5.0, dtype=torch.bfloat16)})
    assert meter.means(accelerator) == {"loss": 2.0, "late": 5.0}
    meter.add({"loss": torch.tensor(7.0)})
    assert meter.means(accelerator) == {"loss": 7.0}


def test_speed_counts_samples_and_the_share_of_waiting_since_the_last_call(tmp_path, monkeypatch) -> None:
    """A step of 8 samples: begun at 0 s, waited for from 1 s to 3 s, read at 8 s; then nothing until 10 s."""
    clock = types.SimpleNamespace(perf_counter=iter([0.0, 1.0, 3.0, 4.0, 8.0, 10.0]).__next__)
    monkeypatch.setattr(meters, "time", clock)
    meter = Meter(toy.toy_run(str(tmp_path)), torch.device("cpu"))
    for _ in meter.timed([{}]):
        meter.add({"loss": torch.tensor(1.0)})
    found = meter.speed()
    assert found["samples_per_second"] == pytest.approx(1.0)
    assert found["data_wait"] == pytest.approx(0.25)
    again = meter.speed()
    assert (again["samples_per_second"], again["data_wait"]) == (0.0, 0.0)
