"""Distances between sets of images, computed by torch-fidelity on a named feature extractor.

A figure means something only beside the name of the extractor: FID is the Fréchet distance on InceptionV3's 2048 pool features
and on nothing else. Whatever else is used carries its own name here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.utils.data import Dataset

from hiergen.weights import read_weights

KEYS = {
    "frechet_inception_distance": "frechet_distance",
    "kernel_inception_distance_mean": "kernel_distance",
    "precision": "precision",
    "recall": "recall",
}


@dataclasses.dataclass(frozen=True)
class FeatureExtractor:
    """A feature extractor by name.

    Attributes:
        name: Stands in every report.
        description: What it is and on what it was trained.
        network: uint8 images `(b, 3, h, w)` -> features `(b, d)`; None for torch-fidelity's own InceptionV3.
        weights: Weights file of InceptionV3, where `network` is None.
    """

    name: str
    description: str
    network: nn.Module | None = None
    weights: str | None = None


def compare_image_sets(
    images: UInt8[Tensor, "n 3 h w"],
    reference: UInt8[Tensor, "m 3 h w"],
    extractor: FeatureExtractor,
    *,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, float]:
    """Return Fréchet distance, kernel distance, precision and recall of one image set against a reference.

    Args:
        images: The set to judge.
        reference: The set it should resemble.
        extractor: Where distances are measured.
        batch_size: Images a pass; the result does not depend on it.
        seed: Of the kernel distance's subsets.

    Raises:
        ValueError: If a set holds fewer than 10 images.
        ImportError: If torch-fidelity is not installed.
    """
    for name, value in (("images", images), ("reference", reference)):
        if value.shape[0] < 10:
            raise ValueError(f"{name} holds {value.shape[0]} images, at least 10 are needed")
    try:
        import torch_fidelity
    except ImportError as error:
        raise ImportError('fidelity metrics need torch-fidelity: pip install "hiergen[eval]"') from error
    if extractor.network is not None:
        chosen: dict[str, Any] = {"feature_extractor": _register(extractor.network, extractor.name)}
    else:
        # By name, because torch-fidelity would otherwise take another network for precision and recall.
        chosen = {"feature_extractor": "inception-v3-compat", "feature_extractor_weights_path": extractor.weights}
    values = torch_fidelity.calculate_metrics(
        input1=_Images(images),
        input2=_Images(reference),
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=min(1000, images.shape[0], reference.shape[0]),
        cuda=False,
        batch_size=batch_size,
        rng_seed=seed,
        save_cpu_ram=True,
        verbose=False,
        # Its cache is a pickle keyed by names; ours are in memory.
        cache=False,
        **chosen,
    )
    return {ours: float(values[theirs]) for theirs, ours in KEYS.items()}


def inception_extractor(weights: str | Path) -> FeatureExtractor:
    """Return InceptionV3 with its 2048 pool features, the extractor that defines FID.

    Args:
        weights: torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`. It is not downloaded here.

    Raises:
        ValueError: If the file is missing, or holds anything but tensors: torch-fidelity reads it without that check.
    """
    if not Path(weights).is_file():
        raise ValueError(
            f"Inception weights {str(weights)!r} do not exist; get weights-inception-2015-12-05-6726825d.pth from the releases "
            "of torch-fidelity and give its path"
        )
    if "Mixed_7c.branch1x1.conv.weight" not in read_weights(weights):
        raise ValueError(f"{str(weights)!r} holds no InceptionV3 of the year 2015 (Mixed_7c is missing)")
    return FeatureExtractor(
        "inception-v3-2048", "InceptionV3 (2015-12-05), 2048 pool features: FID", weights=str(weights)
    )


def _register(network: nn.Module, name: str) -> str:
    """Make the network known to torch-fidelity, under a name that is new each time because it allows no replacing."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    class Registered(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
            super().__init__(name, features_list)
            self.network = network

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        @staticmethod
        def get_dummy_input_for_compile() -> Tensor:
            return torch.zeros(1, 3, 8, 8, dtype=torch.uint8)

        def forward(self, images: Tensor) -> tuple[Tensor]:
            with torch.no_grad():
                return (network(images),)

    unique = f"{name}-{len(FEATURE_EXTRACTORS_REGISTRY)}"
    register_feature_extractor(unique, Registered)
    return unique


class _Images(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self._images = images.cpu()

    def __len__(self) -> int:
        return self._images.shape[0]

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index]
