"""Settings that benchmarks share, importable without PyTorch."""

from __future__ import annotations

import dataclasses

from hiergen.checked import Checked, Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkSettings(Checked):
    """Settings of every benchmark.

    Attributes:
        device: Device to run on; "auto" is CUDA where there is one.
        seed: Seed of weights, inputs and draws.
    """

    device: str = "auto"
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepeatedSettings(BenchmarkSettings):
    """Settings of every benchmark that measures several times.

    Attributes:
        repeats: Number of measured runs of each program or part; the median counts.
    """

    repeats: Count = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repeats < 1:
            raise ValueError(f"repeats is {self.repeats}, expected at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimingSettings(RepeatedSettings):
    """Settings of every benchmark that times whole batches.

    Attributes:
        batches: Numbers of images per call.
    """

    batches: tuple[Count, ...] = (1, 8)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.batches or min(self.batches) < 1:
            raise ValueError(f"batches is {self.batches}, expected at least one, each at least 1")
