"""Names by which settings choose in pyramid attention, importable without PyTorch."""

from __future__ import annotations

from typing import Literal

#: Estimators of importance that a plan can be made from.
ImportanceName = Literal["sampled", "sampled_softmax", "pyramid", "block_mean", "antidiagonal"]
