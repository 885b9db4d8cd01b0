"""What the steps since the last line of the log came to: means of terms, speed, waiting for data, memory, arithmetic."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from hiergen.training.config import TrainConfig
from hiergen.training.reporting.throughput import StepFlops, measure_peak

_T = TypeVar("_T")
_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Meter:
    """Measures the steps of one process; terms stay on the device until their means are asked for.

    Args:
        config: The run.
        device: The device of this process.
        precision: Number format of the passes, in which the peak is measured: "no", "bf16" or "fp16".
    """

    def __init__(self, config: TrainConfig, device: torch.device, *, precision: str = "no") -> None:
        self._config, self._device = config, device
        self._flops: StepFlops | None = None
        if config.peak_tflops is not None:
            self._flops = StepFlops(is_compiled=config.compile)
            is_given = config.peak_tflops != "measure"
            self._peak = float(config.peak_tflops) if is_given else measure_peak(device, _DTYPES[precision])
        self._sums: dict[str, Tensor] = {}
        # Terms that begin later, or come now and then, are means over the steps that had them.
        self._counts: dict[str, int] = {}
        self._steps = 0
        self._started, self._waited = time.perf_counter(), 0.0

    def timed(self, batches: Iterable[_T]) -> Iterator[_T]:
        """Yield `batches`, counting the time that each takes to come."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - asked
            yield batch

    def counting(self, players: tuple[str, ...]) -> contextlib.AbstractContextManager[None]:
        """Inside, the operations of a step of these players are counted, if the run logs them."""
        return self._flops.count(players) if self._flops else contextlib.nullcontext()

    def add(self, terms: dict[str, Tensor]) -> None:
        """Take in the terms of one step."""
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value.float() if name in self._sums else value.float()
            self._counts[name] = self._counts.get(name, 0) + 1
        self._steps += 1

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means of the terms since the last call, over all processes, which must all ask."""
        stacked = torch.stack([value / self._counts[name] for name, value in self._sums.items()])
        reduced = cast(Tensor, accelerator.reduce(stacked, reduction="mean"))
        means = dict(zip(self._sums, reduced.tolist(), strict=True))
        self._sums, self._counts = {}, {}
        return means

    def speed(self) -> dict[str, float]:
        """Return samples per second, the share of waiting for data in [0, 1], memory and arithmetic since the last call."""
        now = time.perf_counter()
        seconds, waited, samples = now - self._started, self._waited, self._steps * self._config.batch_size
        self._started, self._waited, self._steps = now, 0.0, 0
        found = {
            "samples_per_second": samples / seconds,
            "data_wait": waited / seconds,
            "peak_memory_gib": peak_memory(self._device),
        }
        if self._flops is not None:
            reached = self._flops.read() / seconds / 1e12
            found |= {"tflops_per_second": reached, "mfu": reached / self._peak}
        return found


def peak_memory(device: torch.device) -> float:
    """Return the most memory of this process so far, in GiB: allocated on the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
