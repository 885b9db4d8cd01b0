from __future__ import annotations

import pytest
import torch

from hiergen.nn.running.precision import without_autocast


def test_operations_keep_their_dtype_inside_autocast() -> None:
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with without_autocast(x.device):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_any_device_type_is_accepted(device: str) -> None:
    with without_autocast(torch.device(device)):
        assert torch.empty(2, device=device).dtype == torch.float32
