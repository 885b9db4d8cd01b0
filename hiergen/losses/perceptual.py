"""Perceptual distances of images in [-1, 1]: LPIPS, the logits of a ConvNeXt, mixtures of them, and a random jitter in front.

Letters: `b` batch, `c h w` image. Backbones are torchvision's, without any download.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.losses.weight_files import find_weights, read_weights, torch_cache
from hiergen.nn.constants import Constants
from hiergen.nn.precision import without_autocast

LPIPSNetwork = Literal["vgg", "alex", "squeeze"]

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
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
        self.constants = _constants(_SHIFT, _SCALE)
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
            network: See the class.
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
        model.load(read_weights(found), read_weights(found_heads))
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
            distance = torch.zeros(first.shape[0], device=first.device, dtype=_wide(first).dtype)
            for head, x, y in zip(self.heads, self.stages(first), self.stages(second), strict=True):
                difference = (_unit_channels(x) - _unit_channels(y)).square()
                distance = distance + (difference * head[:, None, None]).sum(dim=1).mean(dim=(1, 2))
            return distance

    def stages(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Return the features that are compared, fine to coarse."""
        constants = self.constants.on(images.device)
        x = (_wide(images) - constants["mean"]) / constants["std"]
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                found.append(x)
        return found


class ConvNeXtLogits(nn.Module):
    """The mean squared difference of a ConvNeXt-S's ImageNet logits, at 224 x 224 pixels.

    Weights are random until `from_files`; torchvision's network, whose weights TiTok and its successors use.

    Raises:
        ImportError: If torchvision is not installed.

    Source:
        TiTok, arXiv:2406.07550; ResTok, arXiv:2601.03955, "convnext_s".
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model or _torchvision_models().convnext_small(weights=None)
        self.constants = _constants(_IMAGENET_MEAN, _IMAGENET_STD)
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
        loss.model.load_state_dict(read_weights(found))
        return loss

    def forward(self, first: Float[Tensor, "b 3 h w"], second: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """Return the distance of each pair of images in [-1, 1]."""
        with without_autocast(first.device):
            return (self.logits(first) - self.logits(second)).square().mean(dim=1)

    def logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Return the classifier's logits."""
        constants = self.constants.on(images.device)
        x = F.interpolate(_wide(images), size=(224, 224), mode="bilinear", align_corners=False, antialias=True)
        return self.model(((x + 1) / 2 - constants["mean"]) / constants["std"])


class WeightedMix(nn.Module):
    """The weighted mean of several distances.

    Raises:
        ValueError: If there are no distances, as many weights are not given, or they do not add up to more than 0.
    """

    def __init__(self, distances: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        if not distances or len(distances) != len(weights) or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(
                f"weights are {tuple(weights)} for {len(distances)} distances, expected one each, none negative, not all 0"
            )
        self.distances = nn.ModuleList(distances)
        self.weights = [weight / sum(weights) for weight in weights]

    def forward(self, first: Float[Tensor, "b c h w"], second: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """Return the mixed distance of each pair."""
        parts = [
            weight * distance(first, second) for weight, distance in zip(self.weights, self.distances, strict=True)
        ]
        return torch.stack(parts).sum(dim=0)


def jittered(
    distance: Callable[[Tensor, Tensor], Tensor],
    first: Float[Tensor, "b c h w"],
    second: Float[Tensor, "b c h w"],
    *,
    margin: int = 15,
    rng: torch.Generator | None = None,
) -> Tensor:
    """Return the distance of both images under the same random shift and stretch, one draw for the whole batch.

    Replicate `margin` pixels on all sides, cut 0 to `margin` off each side, resize bicubically to the old size.

    Source:
        ResTok, arXiv:2601.03955: in front of LPIPS, with 15 pixels at 256 x 256.
    """
    device = first.device if rng is None else rng.device
    cuts = torch.randint(0, margin + 1, (4,), generator=rng, device=device).to(first.device)
    both = torch.cat([first, second])
    for dim, (low, high) in ((2, (cuts[0], cuts[1])), (3, (cuts[2], cuts[3]))):
        both = _stretch(both, dim, low, high, margin)
    stretched_first, stretched_second = both.chunk(2)
    return distance(stretched_first, stretched_second)


def _stretch(x: Tensor, dim: int, low: Tensor, high: Tensor, margin: int) -> Tensor:
    """Pad, cut and resize along one side without asking the host for the size of the cut."""
    size = x.shape[dim]
    kept = size + 2 * margin - low - high
    # The centers of the output pixels in pixels of the cut, with corners not aligned.
    place = (torch.arange(size, device=x.device, dtype=_wide(x).dtype) + 0.5) * kept / size - 0.5
    whole = place.floor()
    result = torch.zeros_like(x)
    for tap in (-1, 0, 1, 2):
        weight = _cubic(place - whole - tap)
        inside = torch.minimum((whole.long() + tap).clamp(min=0), kept - 1)
        # Replicated pixels are the border's own.
        source = (inside + low - margin).clamp(0, size - 1)
        shape = [1] * x.ndim
        shape[dim] = size
        result = result + x.index_select(dim, source) * weight.to(x.dtype).reshape(shape)
    return result


def _cubic(distance: Tensor, a: float = -0.75) -> Tensor:
    """Return Keys' cubic convolution kernel, with the constant of PyTorch's bicubic resize."""
    d = distance.abs()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _unit_channels(x: Tensor) -> Tensor:
    # The norm of a zero vector has gradient 0 here; sqrt(sum of squares) would give NaN.
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)


def _constants(mean: tuple[float, ...], std: tuple[float, ...]) -> Constants:
    return Constants(
        mean=torch.tensor(mean, device="cpu")[:, None, None], std=torch.tensor(std, device="cpu")[:, None, None]
    )


def _head_name(index: int) -> str:
    return f"lin{index}.model.1.weight"


def _packaged_heads() -> list[str | Path]:
    import importlib.util

    spec = importlib.util.find_spec("lpips")
    return [] if spec is None or spec.origin is None else [Path(cast(str, spec.origin)).parent / "weights" / "v0.1"]


def _features(builder: str) -> Any:
    # On the meta device first, because the classifiers behind the features are large and not wanted.
    with torch.device("meta"):
        features = getattr(_torchvision_models(), builder)(weights=None).features
    features.to_empty(device="cpu")
    for module in features.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
        elif isinstance(module, nn.ReLU):
            # In place, a ReLU would overwrite what its neighbor has handed out.
            module.inplace = False
    return features


def _torchvision_models() -> Any:
    try:
        import torchvision.models as models
    except ImportError as error:
        raise ImportError('a perceptual loss needs torchvision: pip install "hiergen[images]"') from error
    return models


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
