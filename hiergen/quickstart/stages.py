"""The seconds that each stage of a run takes, over all its sessions."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from hiergen.files import write_json


class StageTimes:
    """Adds up the seconds of named stages in a file, so that a run that was stopped and continued counts all of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}

    @property
    def total(self) -> float:
        return round(sum(self.seconds.values()), 1)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what is done inside; time that ends in an error was spent too."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 2)
            write_json(self._path, self.seconds)
