"""Perceptual distances of images in [-1, 1] by frozen networks: LPIPS, and the logits of a ConvNeXt.

Letters: `b` batch, `c h w` image. Networks are torchvision's, without any download.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.environment import require
from hiergen.nn.constants import IMAGENET_STATISTICS, channel_statistics
from hiergen.nn.running.precision import widen, without_autocast
from hiergen.pretrained.weights import find_weights, read_state_dict, torch_cache

#: Per backbone: the ReLUs (indices of torchvision's `features`) that are compared, and their channels.
_STAGES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "vgg": ((3, 8, 15, 22, 29), (64, 128, 256, 512, 512)),
    "alex": ((1, 4, 7, 9, 11), (64, 192, 384, 256, 256)),
    "squeeze": ((1, 4, 7, 9, 10, 11, 12), (64, 128, 256, 384, 384, 512, 512)),
}
_BUILDERS = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}
_BACKBONE_FILES = {
    "vgg": ("vgg_features.safetensors", "vgg16-397923af.pth"),
    "alex": ("alex_features.safetensors", "alexnet-owt-7be5be79.pth"),
    "squeeze": ("squeeze_features.safetensors", "squeezenet1_1-b8a52dc0.pth"),
}
_CONVNEXT_FILES = ("convnext_small-0c510722.pth",)

#: What LPIPS subtracts from images in [-1, 1], and divides by.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """The learned perceptual distance of two images: squared differences of normalized features, weighted per channel.

    Weights are random until `load` (or `from_files`); with random weights the distance has no meaning.

    Args:
        network: "vgg" (VGG16), "alex" (AlexNet) or "squeeze" (SqueezeNet 1.1).

    Raises:
        ValueError: If the network is unknown.
        ImportError: If torchvision is not installed.

    Source:
        The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, arXiv:1801.03924, version 0.1 of its weights.
    """

    def __init__(self, network: str = "vgg") -> None:
        super().__init__()
        if network not in _STAGES:
            raise ValueError(f"network is {network!r}, expected one of {', '.join(_STAGES)}")
        self.network = network
        self.taps, channels = _STAGES[network]
        self.features = _features(_BUILDERS[network])[: self.taps[-1] + 1]
        self.heads = nn.ParameterList([nn.Parameter(torch.full((count,), 1 / count)) for count in channels])
        self.constants = channel_statistics(_SHIFT, _SCALE)
        self.eval().requires_grad_(False)

    @classmethod
    def from_files(
        cls,
        network: str = "vgg",
        *,
        folder: str | Path | None = None,
        backbone: str | Path | None = None,
        heads: str | Path | None = None,
    ) -> LPIPS:
        """Return the distance with published weights.

        Args:
            network: "vgg", "alex" or "squeeze".
            folder: Where to look first for files of the usual names; then torchvision's cache, and for the heads the `lpips`
                package.
            backbone: File of the backbone: torchvision's .pth, or safetensors with `features.*`.
            heads: File of the linear heads: `lin0.model.1.weight` and so on.

        Raises:
            FileNotFoundError: If a file is missing; says which one and where to put it.
            ValueError: If a file does not hold the weights of this network.
        """
        if network not in _STAGES:
            raise ValueError(f"network is {network!r}, expected one of {', '.join(_STAGES)}")
        folders: list[str | Path] = [folder] if folder is not None else []
        files = [f"lin_{network}.pth", f"{network}.pth"]
        found = backbone or find_weights(
            f"LPIPS: the weights of the {network} backbone",
            _BACKBONE_FILES[network],
            [*folders, torch_cache()],
            source=f"torchvision.models.{_BUILDERS[network]}(weights='DEFAULT') downloads the latter",
        )
        found_heads = heads or find_weights(
            f"LPIPS: the linear heads of {network}",
            files,
            [*folders, *_packaged_heads(), torch_cache()],
            source="they are part of the package lpips: pip install lpips",
        )
        model = cls(network)
        model.load(read_state_dict(found), read_state_dict(found_heads))
        return model

    def load(self, backbone: dict[str, Tensor], heads: dict[str, Tensor]) -> None:
        """Take weights: `features.*` of torchvision's network, and `lin0.model.1.weight` and so on.

        Raises:
            ValueError: If a tensor is missing or has another shape.
        """
        wanted = {f"features.{name}" for name in self.features.state_dict()}
        missing = sorted(wanted - set(backbone)) + sorted(
            name for name in map(_head_name, range(len(self.heads))) if name not in heads
        )
        if missing:
            raise ValueError(
                f"the weights of LPIPS {self.network} lack {', '.join(missing[:4])}: not this network's file"
            )
        try:
            self.features.load_state_dict({name.removeprefix("features."): backbone[name] for name in wanted})
            for index, head in enumerate(self.heads):
                head.copy_(heads[_head_name(index)].flatten())
        except RuntimeError as error:
            raise ValueError(f"the weights do not fit LPIPS {self.network}: {error}") from error

    def forward(self, first: Float[Tensor, "b 3 h w"], second: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """Return the distance of each pair of images in [-1, 1], with gradients, in float32 at least."""
        with without_autocast(first.device):
            distance = torch.zeros(first.shape[0], device=first.device, dtype=widen(first).dtype)
            for head, x, y in zip(self.heads, self.stages(first), self.stages(second), strict=True):
                difference = (_unit_channels(x) - _unit_channels(y)).square()
                distance = distance + (difference * head[:, None, None]).sum(dim=1).mean(dim=(1, 2))
            return distance

    def embed(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Return vectors of images in [-1, 1] whose squared distance is the distance of the images, for many pairs of few images.

        Raises:
            ValueError: If a weight of the heads is negative, so that there are none.
        """
        parts = []
        for number, (head, x) in enumerate(zip(self.heads, self.stages(images), strict=True)):
            if bool((head < 0).any()):
                raise ValueError(f"head {number} has a negative weight, {float(head.min())}; expected none below zero")
            parts.append((_unit_channels(x) * (head / x[0, 0].numel()).sqrt()[:, None, None]).flatten(1))
        return torch.cat(parts, dim=1)

    def stages(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Return the features that are compared, fine to coarse."""
        constants = self.constants.on(images.device)
        x = (widen(images) - constants["mean"]) / constants["std"]
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                found.append(x)
        return found


class ConvNeXtLogits(nn.Module):
    """The mean squared difference of a ConvNeXt-S's ImageNet logits, at 224 x 224 pixels.

    Weights are random until `from_files`. TiTok and its successors use torchvision's network and weights.

    Raises:
        ImportError: If torchvision is not installed.

    Source:
        TiTok, arXiv:2406.07550; ResTok, arXiv:2601.03955, "convnext_s".
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model or require("torchvision.models", "images", "a perceptual loss").convnext_small(weights=None)
        self.constants = channel_statistics(*IMAGENET_STATISTICS)
        self.eval().requires_grad_(False)

    @classmethod
    def from_files(cls, weights: str | Path | None = None, *, folder: str | Path | None = None) -> ConvNeXtLogits:
        """Return the loss with published weights, from a file or from `folder` or torchvision's cache.

        Raises:
            FileNotFoundError: If the file is missing; says which one and where to put it.
        """
        folders: list[str | Path] = [folder] if folder is not None else []
        found = weights or find_weights("the weights of ConvNeXt-S", _CONVNEXT_FILES, [*folders, torch_cache()])
        loss = cls()
        loss.model.load_state_dict(read_state_dict(found))
        return loss

    def forward(self, first: Float[Tensor, "b 3 h w"], second: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """Return the distance of each pair of images in [-1, 1]."""
        with without_autocast(first.device):
            return (self.logits(first) - self.logits(second)).square().mean(dim=1)

    def logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Return the classifier's logits."""
        constants = self.constants.on(images.device)
        x = F.interpolate(widen(images), size=(224, 224), mode="bilinear", align_corners=False, antialias=True)
        return self.model(((x + 1) / 2 - constants["mean"]) / constants["std"])


def _unit_channels(x: Tensor) -> Tensor:
    # The norm of a zero vector has gradient 0 here; sqrt(sum of squares) would give NaN.
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)


def _head_name(index: int) -> str:
    return f"lin{index}.model.1.weight"


def _packaged_heads() -> list[str | Path]:
    import importlib.util

    spec = importlib.util.find_spec("lpips")
    return [] if spec is None or spec.origin is None else [Path(cast(str, spec.origin)).parent / "weights" / "v0.1"]


def _features(builder: str) -> Any:
    # On the meta device first, because the classifiers behind the features are large and not wanted.
    with torch.device("meta"):
        features = getattr(require("torchvision.models", "images", "a perceptual loss"), builder)(weights=None).features
    features.to_empty(device="cpu")
    for module in features.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
        elif isinstance(module, nn.ReLU):
            # In place, a ReLU would overwrite what its neighbor has handed out.
            module.inplace = False
    return features
