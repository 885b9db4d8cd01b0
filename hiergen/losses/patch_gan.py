"""Convolutional patch discriminators, plain and with blurred downsampling, and the hinge losses of every discriminator.

`hiergen.losses.adversarial.Adversary` holds a discriminator, `hiergen.training.tasks.tokenizer` trains it.

Letters: `b` batch, `c h w` image.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.nn.running.precision import widen
from hiergen.nn.running.processes import ProcessBatchNorm2d


class PatchDiscriminator(nn.Module):
    """Images to a map of logits; each logit judges one patch (70 x 70 pixels with three layers).

    Convolutions 4 x 4 with padding 1: `num_layers` of them with stride 2, two with stride 1; batch norm (over all processes) after all but
    the first and the last; leaky ReLU 0.2. Modules are laid out as in taming-transformers (`main.<index>`).

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
                ProcessBatchNorm2d(following),
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


class BlurPoolDiscriminator(nn.Module):
    """Images to a fixed map of logits, with a binomial blur in front of every halving so that it cannot see aliasing.

    A 5 x 5 stem; stages of 3 x 3 convolution, blur with stride 2, group norm, leaky ReLU; the largest value of each cell of a
    `map_size` x `map_size` grid; 1 x 1 and 5 x 5 convolutions to logits.

    Args:
        in_channels: Channels of the image.
        dim: Channels of the stem and of the first stage; each further stage has twice as many.
        num_stages: Halvings.
        map_size: Side of the map of logits, whatever the size of the image.
        groups: Groups of the group norms.

    Raises:
        ValueError: If the stages' channels cannot be cut into the groups.

    Source:
        ResTok's code (arXiv:2601.03955), its discriminator where `dino_disc` is off: 128 channels, three stages. The blur's four taps
        (1, 3, 3, 1) after arXiv:1904.11486, its mirrored border, and the two last convolutions were chosen here.
    """

    blur: Tensor

    def __init__(
        self, in_channels: int = 3, *, dim: int = 128, num_stages: int = 3, map_size: int = 16, groups: int = 32
    ) -> None:
        super().__init__()
        if dim % groups:
            raise ValueError(f"dim is {dim}, expected a multiple of groups, {groups}")
        widths = [dim, *(dim * 2**stage for stage in range(num_stages))]
        self.stem = nn.Conv2d(in_channels, dim, 5, padding=2)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, following, 3, padding=1) for width, following in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(groups, width) for width in widths[1:])
        self.map_size = map_size
        self.head = nn.Conv2d(widths[-1], widths[-1], 1)
        self.to_logits = nn.Conv2d(widths[-1], 1, 5, padding=2)
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("blur", torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 map map"]:
        """Return logits, large where the image looks real."""
        x = _leaky(self.stem(images))
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.pad(convolution(x), (1, 1, 1, 1), mode="reflect")
            x = F.conv2d(x, self.blur.to(x.dtype).expand(x.shape[1], 1, 4, 4), stride=2, groups=x.shape[1])
            x = _leaky(norm(x))
        x = F.adaptive_max_pool2d(x, (self.map_size, self.map_size))
        return self.to_logits(_leaky(self.head(x)))


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Float[Tensor, ""]:
    """Return (mean relu(1 - real) + mean relu(1 + fake)) / 2 of the logits of real and reconstructed images."""
    return (F.relu(1 - widen(real)).mean() + F.relu(1 + widen(fake)).mean()) / 2


def hinge_generator_loss(fake: Tensor) -> Float[Tensor, ""]:
    """Return -mean of the logits of reconstructed images."""
    return -widen(fake).mean()


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1)
