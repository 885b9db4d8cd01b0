"""The perceptual term of a tokenizer's training: its settings, and the distance of reconstructions behind a random jitter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hiergen.losses.perceptual import WeightedMix, jittered
from hiergen.pretrained.perceptual import LPIPS, ConvNeXtLogits
from hiergen.pretrained.weights import Frozen
from hiergen.training.tasks.term_settings import PerceptualConfig


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
