"""Feature extractors by name: where distances between image sets are measured.

A figure means something only beside the name of its extractor. FID is the Fréchet distance on InceptionV3's 2048 pool features and on
nothing else; every other extractor here gives its distances a name of their own.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from hiergen.config import fingerprint, nearest
from hiergen.data.images.digits import load_digits
from hiergen.data.images.pixels import to_uint8
from hiergen.environment import require
from hiergen.files import file_digest
from hiergen.metrics.classifiers import FeatureNetwork, train_feature_network
from hiergen.metrics.fidelity import FeatureExtractor, Features
from hiergen.pretrained.perceptual import LPIPS
from hiergen.pretrained.teachers import TEACHERS, Teacher
from hiergen.pretrained.weights import read_state_dict

#: Channels and places of the spatial features: the first 7 channels of a 17 x 17 map.
SPATIAL_CHANNELS = 7


@dataclasses.dataclass(frozen=True)
class ExtractorConfig:
    """Which feature extractor.

    Attributes:
        name: "inception" (FID), "inception-768" (the same network up to Mixed_6e: FID-768), "dinov2-b", "dinov2-l", "digits" (a small
            classifier trained on the embedded digits), or a name given to `register_extractor`.
        weights: File of the weights, .pth or .safetensors, for those that are read from a file.
    """

    name: str = "inception"
    weights: str | None = None


@dataclasses.dataclass(frozen=True)
class Extractor(FeatureExtractor):
    """A feature extractor with what reports and caches must know of it; the description also says how images are resized.

    Attributes:
        distance: What the Fréchet distance on its pool features is called.
        dim: Channels of its pool features.
        fingerprint: Digits that change when the features do.
        spatial_dim: Numbers of its spatial features; 0 where it has none.
    """

    distance: str
    dim: int
    fingerprint: str
    spatial_dim: int = 0

    def about(self) -> dict[str, str]:
        """Return what a report says of it."""
        return {"name": self.name, "description": self.description, "fingerprint": self.fingerprint}


Builder = Callable[[ExtractorConfig, torch.device], Extractor]


def build_extractor(config: ExtractorConfig, device: torch.device | str = "cpu") -> Extractor:
    """Return an extractor with its weights, on a device.

    Raises:
        ValueError: If the name is unknown, or the weights are not its own.
        FileNotFoundError: If weights are missing; says which file, how to get it and where to put it.
        ImportError: If a library is not installed.
    """
    check_extractor(config)
    return EXTRACTORS[config.name](config, torch.device(device))


def check_extractor(config: ExtractorConfig) -> None:
    """Check a name and that a file of weights is there, in no time: some extractors are trained while they are built.

    Raises:
        ValueError: If the name is unknown, or weights are given to an extractor that takes none.
        FileNotFoundError: If weights are missing.
        ImportError: If torch-fidelity, which all distances need, is not installed.
    """
    if config.name not in EXTRACTORS:
        raise ValueError(f"unknown extractor {config.name!r}{nearest(config.name, EXTRACTORS)}")
    if config.name in FILES:
        _weights_file(config)
    elif config.name == "digits" and config.weights:
        raise ValueError(f"extractor 'digits' is trained on the spot, expected no weights, got {config.weights!r}")
    require("torch_fidelity", "eval", "a distance between image sets")


def open_lpips(network: str, folder: str | None, size: int, device: torch.device) -> LPIPS | None:
    """Return LPIPS with its weights, on a device; None for "none".

    Raises:
        ValueError: If the network is unknown, a file is not its own, or images of `size` x `size` pixels are too small for it.
        FileNotFoundError: If weights are missing; says which file, how to get it and where to put it.
    """
    if network == "none":
        return None
    try:
        lpips = LPIPS.from_files(network, folder=folder).to(device)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} (--lpips-folder names another folder, --lpips none leaves LPIPS out)"
        ) from error
    gray = torch.zeros(1, 3, size, size, device=device)
    try:
        with torch.no_grad():
            lpips(gray, gray)
    except RuntimeError as error:
        raise ValueError(
            f"LPIPS on {network!r} cannot look at {size} x {size} pixels ({error}): --lpips none leaves it out"
        ) from error
    return lpips


def register_extractor(name: str, builder: Builder) -> None:
    """Make an extractor known under a name.

    Raises:
        ValueError: If the name is taken.
    """
    if name in EXTRACTORS:
        raise ValueError(f"extractor {name!r} is registered already")
    EXTRACTORS[name] = builder


class Inception(nn.Module):
    """torch-fidelity's InceptionV3 of 2015-12-05 with the features of FID, sFID and IS.

    Args:
        state: Its weights; or those of the layers up to Mixed_6e with batch norm folded into them.
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


def _build_inception(config: ExtractorConfig, device: torch.device) -> Extractor:
    return _build_from_file(
        config,
        device,
        distance="FID",
        description="InceptionV3 (2015-12-05), 2048 pool features; resized to 299 x 299 as TensorFlow 1 does",
        dim=2048,
    )


def _build_truncated(config: ExtractorConfig, device: torch.device) -> Extractor:
    return _build_from_file(
        config,
        device,
        distance="FID-768",
        description="InceptionV3 (2015-12-05) up to Mixed_6e, 768 pool features (not FID's 2048); resized to 299 x 299 as "
        "TensorFlow 1 does",
        dim=768,
    )


def _build_from_file(
    config: ExtractorConfig, device: torch.device, *, distance: str, description: str, dim: int
) -> Extractor:
    path = _weights_file(config)
    network = Inception(read_state_dict(path), is_truncated=dim == 768).to(device)
    digits = f"{config.name}-{file_digest(path)[:16]}"
    return Extractor(config.name, description, network, distance, dim, digits, spatial_dim=SPATIAL_CHANNELS * 17 * 17)


def _weights_file(config: ExtractorConfig) -> Path:
    file, hint = FILES[config.name]
    path = Path(config.weights) if config.weights else Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.is_file():
        raise FileNotFoundError(
            f"the weights of extractor {config.name!r} are not at {str(path)!r}: get {file} ({hint}), then put it there or name it "
            "with --extractor.weights"
        )
    return path


def _build_dinov2(config: ExtractorConfig, device: torch.device) -> Extractor:
    size = config.name.removeprefix("dinov2-")
    teacher = Teacher({"b": "dinov2_b", "l": "dinov2"}[size], config.weights).to(device)
    side = TEACHERS["dinov2"].image_size

    def features(images: Tensor) -> Features:
        return {"pool": teacher(images.float() / 127.5 - 1)[0].float()}

    weights = file_digest(config.weights)[:16] if config.weights and Path(config.weights).is_file() else "published"
    description = f"DINOv2 ViT-{size.upper()}/14, class token; resized to {side} x {side} (bicubic, no antialiasing)"
    return Extractor(
        config.name, description, features, f"FD-DINOv2-{size.upper()}", teacher.dim, f"{config.name}-{weights}"
    )


@functools.cache
def _digits_network() -> FeatureNetwork:
    train = load_digits("train", size=32)
    return train_feature_network(to_uint8(train.images), train.labels, seed=0)


def _build_digits(config: ExtractorConfig, device: torch.device) -> Extractor:
    network = copy.deepcopy(_digits_network()).to(device)

    def features(images: Tensor) -> Features:
        return {"pool": network(images), "logits": network.scores(images)}

    digest = hashlib.sha256(b"".join(p.detach().cpu().numpy().tobytes() for p in network.parameters())).hexdigest()
    return Extractor(
        config.name,
        "32 features of a 3-convolution classifier trained on scikit-learn's digits (seed 0, 32 x 32, not resized; not Inception: "
        "its distances compare only with each other)",
        features,
        "FD-digits-cnn",
        network.FEATURES,
        fingerprint({"name": config.name, "weights": digest}),
    )


#: Files of weights by the extractor that reads them, and where they come from.
FILES = {
    "inception": (
        "weights-inception-2015-12-05-6726825d.pth",
        "download it from the releases of torch-fidelity (v0.2.0)",
    ),
    "inception-768": (
        "inception_2015_12_05_upto_mixed_6e.safetensors",
        "it holds `conv.weight` and `bn.bias` of the layers up to Mixed_6e, batch norm folded, under torch-fidelity's names",
    ),
}
#: Extractors by name.
EXTRACTORS: dict[str, Builder] = {
    "inception": _build_inception,
    "inception-768": _build_truncated,
    "dinov2-b": _build_dinov2,
    "dinov2-l": _build_dinov2,
    "digits": _build_digits,
}
