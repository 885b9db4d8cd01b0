"""Feature extractors by name: where distances between image sets are measured.

A figure means something only beside the name of its extractor. FID is the Fréchet distance on InceptionV3's 2048 pool features and on
nothing else; every other extractor here gives its distances a name of their own. `register_extractor` adds one.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from hiergen.config import fingerprint, nearest
from hiergen.data.images.digits import load_digits
from hiergen.data.images.pixels import to_uint8
from hiergen.environment import require
from hiergen.evaluation.features.inception import SPATIAL_CHANNELS, Inception
from hiergen.evaluation.settings import ExtractorConfig
from hiergen.files import file_digest
from hiergen.metrics.classifiers import FeatureNetwork, saved_feature_network, train_feature_network
from hiergen.metrics.fidelity import FeatureExtractor, Features
from hiergen.pretrained.perceptual import LPIPS
from hiergen.pretrained.teachers import TEACHERS, Teacher
from hiergen.pretrained.weights import read_state_dict


@dataclasses.dataclass(frozen=True)
class Training:
    """What a classifier was trained on, which tells what its features know.

    Attributes:
        what: Name of the pictures, e.g. "scikit-learn's digits".
        size: Side of the pictures in pixels.
        resizes: Whether pictures of other sizes are brought to this one.
        is_gray: Whether all of them were gray.
        classes: Name of each class, in the order of the logits; None for one that was not learned.
        accuracy: Share of held-out pictures whose class it names.
        num_held_out: Number of these.
    """

    what: str
    size: int
    resizes: bool
    is_gray: bool
    classes: tuple[str | None, ...]
    accuracy: float
    num_held_out: int


@dataclasses.dataclass(frozen=True)
class Extractor(FeatureExtractor):
    """A feature extractor with what reports and caches must know of it; the description also says how images are resized.

    Attributes:
        distance: Name of the Fréchet distance on the extractor's pool features.
        dim: Number of channels of its pool features.
        fingerprint: Digits that change when the features do.
        spatial_dim: Number of its spatial features; 0 where it has none.
        training: What it was trained on, where that is known and narrow.
    """

    distance: str
    dim: int
    fingerprint: str
    spatial_dim: int = 0
    training: Training | None = None

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


def check_extractor(config: ExtractorConfig, *, has_classes: bool = False) -> None:
    """Check a name and that a file of weights is there, in no time: some extractors are trained while they are built.

    Args:
        config: Which extractor.
        has_classes: Whether there are real pictures with classes, which "own" is trained on.

    Raises:
        ValueError: If the name is unknown, weights are given to an extractor that takes none, or it is "own" without classes.
        FileNotFoundError: If weights are missing.
        ImportError: If torch-fidelity, which all distances need, is not installed.
    """
    if config.name not in EXTRACTORS:
        raise ValueError(f"unknown extractor {config.name!r}{nearest(config.name, EXTRACTORS)}")
    if config.name == "own" and not has_classes:
        _refuse_own(config, torch.device("cpu"))
    if config.name in FILES:
        _weights_file(config)
    elif config.name in ("digits", "own") and config.weights:
        raise ValueError(
            f"extractor {config.name!r} is trained on the spot, expected no weights, got {config.weights!r}"
        )
    plain = ExtractorConfig()
    given = [name for name in ("size", "budget", "seed") if getattr(config, name) != getattr(plain, name)]
    if given and config.name in (*FILES, "dinov2-b", "dinov2-l", "digits"):
        raise ValueError(
            f"extractor {config.name!r} is not trained on your data, expected no {given[0]}: that is for 'own'"
        )
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


def trained_extractor(
    path: str | Path, images: UInt8[Tensor, "n 3 h w"], labels: Int64[Tensor, " n"], *, of: str, epochs: int = 15
) -> FeatureExtractor:
    """Return a small classifier's features where no published network fits; trained on the images unless its file is there.

    Args:
        path: Safetensors file of the classifier; its stem names the extractor.
        images: Images to train on.
        labels: Classes of the images.
        of: What the images are, for the description.
        epochs: Number of passes over the images.
    """
    network = saved_feature_network(path, images, labels, epochs=epochs)
    return FeatureExtractor(Path(path).stem, f"{network.FEATURES} features of a classifier of {of}", network)


def inception_or_trained(
    weights: str, path: str | Path, images: UInt8[Tensor, "n 3 h w"], labels: Int64[Tensor, " n"], *, of: str
) -> FeatureExtractor:
    """Return InceptionV3 (FID) with a file of weights; where none is named, `trained_extractor`."""
    if weights:
        return build_extractor(ExtractorConfig("inception", weights))
    return trained_extractor(path, images, labels, of=of)


def register_extractor(name: str, builder: Builder) -> None:
    """Make an extractor known under a name.

    Raises:
        ValueError: If the name is taken.
    """
    if name in EXTRACTORS:
        raise ValueError(f"extractor {name!r} is registered already")
    EXTRACTORS[name] = builder


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
def _digits_network() -> tuple[FeatureNetwork, Training]:
    train, test = (load_digits(split, size=32) for split in ("train", "test"))
    network = train_feature_network(to_uint8(train.images), train.labels, seed=0)
    accuracy = float((network.scores(to_uint8(test.images)).argmax(dim=1) == test.labels).double().mean())
    return network, Training("scikit-learn's digits", 32, False, True, test.classes, accuracy, len(test))


def _build_digits(config: ExtractorConfig, device: torch.device) -> Extractor:
    network, training = _digits_network()
    return classifier_extractor(
        config.name,
        "32 features of a 3-convolution classifier trained on scikit-learn's digits (seed 0, 32 x 32, not resized; not Inception: "
        "its distances compare only with each other)",
        network,
        device,
        training=training,
    )


def classifier_extractor(
    name: str,
    description: str,
    network: FeatureNetwork,
    device: torch.device,
    *,
    training: Training,
    prepare: Callable[[Tensor], Tensor] = lambda images: images,
) -> Extractor:
    """Return the extractor of a small classifier: its features and its class scores.

    Args:
        name: Name of the extractor.
        description: What a report says of it.
        network: The classifier; it is copied.
        device: Device of the copy.
        training: What it was trained on.
        prepare: What is done to uint8 images before it sees them.
    """
    network = copy.deepcopy(network).to(device)

    def features(images: Tensor) -> Features:
        images = prepare(images)
        return {"pool": network(images), "logits": network.scores(images)}

    digest = hashlib.sha256(b"".join(p.detach().cpu().numpy().tobytes() for p in network.parameters())).hexdigest()
    digits = fingerprint({"name": name, "weights": digest})
    return Extractor(name, description, features, f"FD-{name}-cnn", network.FEATURES, digits, training=training)


def _refuse_own(config: ExtractorConfig, device: torch.device) -> Extractor:
    raise ValueError(
        "extractor 'own' is trained on the classes of real pictures, which `hiergen evaluate rfid` and `gfid` with --data.source have; "
        "here there are none: take another extractor"
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
    "own": _refuse_own,
}
