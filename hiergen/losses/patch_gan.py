"""The patch discriminator of taming-transformers and its hinge losses.

Letters: `b` batch, `c h w` image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Images to a map of logits, each of which judges one patch (70 x 70 pixels with three layers).

    Convolutions 4 x 4 with padding 1: `num_layers` of them with stride 2, two with stride 1; batch norm after all but the first and
    the last; leaky ReLU 0.2. Modules are laid out as in taming-transformers (`main.<index>`).

    Args:
        in_channels: Channels of the image.
        dim: Channels of the first layer; they double with each layer, up to eight times as many.
        num_layers: Layers with stride 2.

    Source:
        pix2pix, arXiv:1611.07004; VQGAN, arXiv:2012.09841.
    """

    def __init__(self, in_channels: int = 3, *, dim: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, dim, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = dim
        for layer in range(1, num_layers + 1):
            following = dim * min(2**layer, 8)
            stride = 2 if layer < num_layers else 1
            # Batch norm has a bias of its own.
            layers += [
                nn.Conv2d(width, following, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(following),
                nn.LeakyReLU(0.2),
            ]
            width = following
        layers.append(nn.Conv2d(width, 1, 4, stride=1, padding=1))
        self.main = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 ph pw"]:
        """Return logits, large where a patch looks real."""
        return self.main(images)


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Float[Tensor, ""]:
    """Return (mean relu(1 - real) + mean relu(1 + fake)) / 2 of the logits of real and reconstructed images."""
    return (F.relu(1 - _wide(real)).mean() + F.relu(1 + _wide(fake)).mean()) / 2


def hinge_generator_loss(fake: Tensor) -> Float[Tensor, ""]:
    """Return -mean of the logits of reconstructed images."""
    return -_wide(fake).mean()


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
