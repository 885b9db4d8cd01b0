"""The features of FID: InceptionV3 of 2015-12-05, whole or up to Mixed_6e."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from hiergen.environment import require
from hiergen.metrics.fidelity import Features

#: Number of channels of the spatial features: the first 7 of a 17 x 17 map.
SPATIAL_CHANNELS = 7


class Inception(nn.Module):
    """torch-fidelity's InceptionV3 of 2015-12-05 with the features of FID, sFID and IS.

    Args:
        state: Weights of the network, or of its layers up to Mixed_6e with batch norm folded into them.
        is_truncated: `state` is the latter: pool features are Mixed_6e's 768, and there are no logits.

    Raises:
        ValueError: If a tensor is missing or has another shape.
        ImportError: If torch-fidelity is not installed.

    Source:
        FID, arXiv:1706.08500. sFID, arXiv:2103.03841, on the layer and the seven channels that ADM's evaluator takes (mixed_6/conv,
        channels last), so that its statistics files fit.
    """

    def __init__(self, state: dict[str, Tensor], *, is_truncated: bool = False) -> None:
        super().__init__()
        self.layers = ["768"] if is_truncated else ["2048", "logits_unbiased"]
        network: Any = _inception(state, self.layers, is_truncated)
        network.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        network.Mixed_6d.branch1x1.register_forward_hook(self._keep)
        self.network: Any = network
        self._spatial: Tensor | None = None

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Features:
        """Return the features of uint8 images, which are resized to 299 x 299 as TensorFlow 1 does (bilinear, no antialiasing)."""
        found = self.network(images)
        assert self._spatial is not None
        features = {"pool": found[0], "spatial": self._spatial}
        self._spatial = None
        return features if len(found) == 1 else {**features, "logits": found[1]}


def _inception(state: dict[str, Tensor], layers: list[str], is_truncated: bool) -> nn.Module:
    base: Any = require(
        "torch_fidelity.feature_extractor_inceptionv3", "eval", "an Inception extractor"
    ).FeatureExtractorInceptionV3

    class FromTensors(base):  # torch-fidelity has no types
        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return super().load_state_dict(_complete(state, self.state_dict(), is_truncated))

    # Its constructor insists on unpickling a file: it gets an empty one of ours, and the tensors come from `state`.
    with tempfile.NamedTemporaryFile(suffix=".pth") as empty:
        torch.save({}, empty.name)
        return FromTensors("inception-v3-compat", layers, feature_extractor_weights_path=empty.name)


def _complete(state: dict[str, Tensor], wanted: dict[str, Tensor], is_truncated: bool) -> dict[str, Tensor]:
    """Return all tensors of the network. Batch norm that was folded away does nothing; layers that are absent give NaN."""
    full, missing = {}, []
    for name, like in wanted.items():
        value = state.get(name)
        if value is not None and value.shape == like.shape:
            full[name] = value
        elif name.endswith("num_batches_tracked"):
            full[name] = like
        elif is_truncated and f"{name.rsplit('.', 1)[0]}.bias" in state and value is None:
            # eps of 0.001 makes it a deviation of 1.
            fill = {"weight": 1.0, "running_mean": 0.0, "running_var": 0.999}[name.rsplit(".", 1)[1]]
            full[name] = torch.full_like(like, fill)
        elif is_truncated and name.startswith(("Mixed_7", "fc.")):
            full[name] = torch.full_like(like, float("nan"))
        else:
            missing.append(name)
    if missing:
        kind = "InceptionV3 up to Mixed_6e" if is_truncated else "InceptionV3 of 2015-12-05"
        raise ValueError(
            f"the weights are not those of {kind}: {missing[0]} and {len(missing) - 1} more lack or differ in shape"
        )
    return full
