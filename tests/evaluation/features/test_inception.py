"""InceptionV3 from tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hiergen.evaluation.features.inception import Inception


@torch.no_grad()
def test_inception_from_tensors_is_torch_fidelitys(tmp_path: Path) -> None:
    """Random weights through torch-fidelity's own loading; the truncated network agrees with the whole one on 768 and sFID's layer."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Random(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args: Any, **kwargs: Any) -> None:
            """Keep the random weights."""

    torch.save({}, tmp_path / "empty.pth")
    official = Random("inception-v3-compat", ["768", "2048", "logits_unbiased"], str(tmp_path / "empty.pth"))
    state = official.state_dict()
    for name in state:
        # As after folding: batch norm adds a bias and does nothing else.
        fill = {"running_var": 0.999, "running_mean": 0.0}.get(name.rsplit(".", 1)[1])
        if fill is not None:
            state[name].fill_(fill)
    images = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8)
    low, pool, logits = official(images)
    whole = Inception(state)(images)
    torch.testing.assert_close(whole["pool"], pool, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole["logits"], logits, rtol=1e-4, atol=1e-4)
    kept = {
        k: v for k, v in state.items() if not k.startswith(("Mixed_7", "fc")) and k.endswith(("conv.weight", "bn.bias"))
    }
    truncated = Inception(kept, is_truncated=True)(images)
    torch.testing.assert_close(truncated["pool"], low, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(truncated["spatial"], whole["spatial"], rtol=1e-4, atol=1e-4)
    assert truncated["spatial"].shape == (1, 7 * 17 * 17)
    assert "logits" not in truncated
    with pytest.raises(ValueError, match="not those of InceptionV3 of 2015-12-05"):
        Inception(kept)
    del kept["Mixed_6e.branch_pool.conv.weight"]
    with pytest.raises(
        ValueError, match=r"not those of InceptionV3 up to Mixed_6e: Mixed_6e\.branch_pool\.conv\.weight"
    ):
        Inception(kept, is_truncated=True)
    assert np.isfinite(truncated["pool"].numpy()).all()
