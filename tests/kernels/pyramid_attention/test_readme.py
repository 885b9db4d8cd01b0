"""What the README of the package shows runs."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import hiergen.kernels.pyramid_attention

README = Path(hiergen.kernels.pyramid_attention.__file__).with_name("README.md").read_text()


def test_the_example_runs_and_a_plan_gives_what_it_gave_the_first_time() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    rng = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 1024, 16, generator=rng)
    names: dict[str, object] = {"q": q, "k": k, "v": v}
    exec(compile(block, "README.md", "exec"), names)
    assert names["out"].shape == q.shape
    assert 0 < float(names["plan"].density) <= 1
