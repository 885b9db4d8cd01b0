"""The perceptual term of a tokenizer's training: its settings, and the distance of reconstructions behind a random jitter."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from hiergen.checked import Checked, CountOrZero, NotNegative
from hiergen.losses.perceptual import WeightedMix, jittered
from hiergen.pretrained.network_names import LPIPSNetwork
from hiergen.pretrained.perceptual import LPIPS, ConvNeXtLogits
from hiergen.pretrained.weights import Frozen


@dataclasses.dataclass(frozen=True)
class PerceptualConfig(Checked):
    """A perceptual term.

    Attributes:
        weight: Weight of the perceptual term in the loss.
        network: Backbone of LPIPS.
        lpips_part: Share of LPIPS in the term.
        convnext_part: Share of the ConvNeXt-S logits in the term; ResTok's code calls a mixture "lpips-convnext_s-a-b".
        jitter: Largest random shift in front of the networks, in pixels; 0 for none. Published: 15 at 256 x 256.
        weights: Folder of the weight files; None looks into torchvision's cache; "random" is for trials without weights.
    """

    weight: NotNegative = 1.0
    network: LPIPSNetwork = "vgg"
    lpips_part: NotNegative = 1.0
    convnext_part: NotNegative = 0.0
    jitter: CountOrZero = 15
    weights: str | None = None


class PerceptualTerm:
    """The perceptual distance of reconstructions, behind the random jitter.

    Raises:
        FileNotFoundError: If weights are missing; says which file, where to put it, and how to go without.
    """

    def __init__(self, config: PerceptualConfig) -> None:
        try:
            self._distance = Frozen(_distance(config))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error} (--task.perceptual.weights names another folder, --task.perceptual None trains without the term)"
            ) from error
        self._jitter = config.jitter

    def __call__(self, reconstruction: Tensor, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return the distance of each image of a batch."""
        distance = self._distance.on(images.device)
        if self._jitter:
            return jittered(distance, reconstruction, images, margin=self._jitter, rng=rng)
        return distance(reconstruction, images)


def _distance(config: PerceptualConfig) -> WeightedMix:
    is_random = config.weights == "random"
    parts: list[tuple[float, nn.Module]] = []
    if config.lpips_part:
        lpips = LPIPS(config.network) if is_random else LPIPS.from_files(config.network, folder=config.weights)
        parts.append((config.lpips_part, lpips))
    if config.convnext_part:
        convnext = ConvNeXtLogits() if is_random else ConvNeXtLogits.from_files(folder=config.weights)
        parts.append((config.convnext_part, convnext))
    return WeightedMix([part for _, part in parts], [share for share, _ in parts])
