"""Names by which settings choose attention, importable without PyTorch."""

from __future__ import annotations

from typing import Literal

#: Backends of dense and level-masked attention (`hiergen.kernels.attention`).
DenseBackendName = Literal["sdpa", "reference", "grouped", "flex", "xformers", "hub"]

#: Estimators of importance that a plan can be made from.
ImportanceName = Literal["sampled", "sampled_softmax", "pyramid", "block_mean", "antidiagonal"]
