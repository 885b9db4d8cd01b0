"""A discriminator that reads the features of a frozen DINO vision transformer, as ResTok uses it.

Only the heads are trained. `hiergen.losses.adversarial.Adversary` holds the losses, `hiergen.training.tasks.tokenizer` runs them.

Letters: `b` batch, `d` channels, `n` patches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.nn.constants import IMAGENET_STATISTICS, channel_statistics
from hiergen.nn.running.precision import widen, without_autocast
from hiergen.pretrained.teachers import timm_network
from hiergen.pretrained.weights import Frozen

DINO = "vit_small_patch16_224.dino"


def dino_backbone(weights: str | Path | None = None, **options: Any) -> nn.Module:
    """Return DINO ViT-S/16 with the tanh form of GELU.

    Args:
        weights: File of the weights; None takes timm's cache or download; "random" for tests.
        options: Options of `timm.create_model`, e.g. a smaller `depth`.

    Raises:
        FileNotFoundError: If the weights are nowhere.
    """
    return timm_network(DINO, weights, act_layer="gelu_tanh", **options)


class LocalBatchNorm(nn.Module):
    """Batch norm over small groups of a batch, with the same statistics in training and evaluation.

    The batch is cut into ceil(b / group) contiguous groups; mean and biased variance are over a group's samples and positions.

    Raises:
        ValueError: If the batch cannot be cut into equal groups.
    """

    def __init__(self, dim: int, *, group: int = 8, eps: float = 1e-6) -> None:
        super().__init__()
        self.group, self.eps = group, eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Float[Tensor, "b d n"]) -> Float[Tensor, "b d n"]:
        batch = x.shape[0]
        count = -(-batch // self.group)
        if batch % count:
            raise ValueError(
                f"a batch of {batch} cannot be cut into {count} equal groups of at most {self.group}; "
                f"expected at most {self.group} samples per process, or a multiple"
            )
        grouped = widen(x).unflatten(0, (count, batch // count))
        mean = grouped.mean(dim=(1, 3), keepdim=True)
        variance = grouped.var(dim=(1, 3), keepdim=True, unbiased=False)
        normal = ((grouped - mean) * (variance + self.eps).rsqrt()).flatten(0, 1)
        return (normal * self.weight[:, None] + self.bias[:, None]).to(x.dtype)


class _Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return (self.fn(x) + x) * 0.5**0.5


class DinoDiscriminator(nn.Module):
    """Images in [-1, 1] to logits, one per patch and head, large where the image looks real.

    Five heads read the backbone before its first block and after four blocks spread over its depth. The backbone is not in the
    state dict. Sides above the backbone's size: with probability 1/2 one random crop of that size (the same for the batch),
    otherwise an area resize; below it, a bicubic one.

    Args:
        backbone: Network of `dino_backbone`, or any timm vision transformer with a class token.
        kernel_size: Kernel size of the heads' second convolution.

    Source:
        ResTok, arXiv:2601.03955, after VAR's and StyleGAN-T's discriminators (arXiv:2301.09515).
    """

    def __init__(self, backbone: nn.Module, *, kernel_size: int = 9) -> None:
        super().__init__()
        vit: Any = backbone
        self.backbone = Frozen(backbone)
        depth, dim = len(vit.blocks), vit.embed_dim
        self.image_size = vit.patch_embed.img_size[0]
        # Blocks 2, 5, 8 and 11 of twelve.
        self.taps = tuple(sorted({max(0, depth * k // 4 - 1) for k in range(1, 5)}))
        self.heads = nn.ModuleList([_head(dim, kernel_size) for _ in range(len(self.taps) + 1)])
        self.constants = channel_statistics(*IMAGENET_STATISTICS)

    def forward(
        self, images: Float[Tensor, "b 3 h w"], *, rng: torch.Generator | None = None
    ) -> Float[Tensor, "b logits"]:
        """Return the logits of all heads, head after head. `rng` draws the crop of large images."""
        features = self.features(images, rng=rng)
        # Spectral norms and statistics of a few samples are not for half precision.
        with without_autocast(images.device):
            logits = [head(widen(x)).flatten(1) for head, x in zip(self.heads, features, strict=True)]
        return torch.cat(logits, dim=1)

    def features(self, images: Float[Tensor, "b 3 h w"], *, rng: torch.Generator | None = None) -> list[Tensor]:
        """Return what the heads read: patch tokens plus the class token, `(b, d, n)` each."""
        vit = self.backbone.on(images.device)
        constants = self.constants.on(images.device)
        x = ((self._fit(images, rng) + 1) / 2 - constants["mean"]) / constants["std"]
        tokens = vit._pos_embed(vit.patch_embed(x.to(vit.cls_token.dtype)))
        found = [tokens]
        for index, block in enumerate(vit.blocks):
            tokens = block(tokens)
            if index in self.taps:
                found.append(tokens)
        return [(x[:, 1:] + x[:, :1]).transpose(1, 2) for x in found]

    def _fit(self, images: Tensor, rng: torch.Generator | None) -> Tensor:
        size, (height, width) = self.image_size, images.shape[2:]
        if (height, width) == (size, size):
            return images
        if height <= size and width <= size:
            return F.interpolate(images, size=(size, size), mode="bicubic", align_corners=False)
        resized = F.interpolate(images, size=(size, size), mode="area")
        if min(height, width) < size:
            return resized
        device = images.device if rng is None else rng.device
        draws = torch.rand(3, generator=rng, device=device).to(images.device)
        # Gathered by index and chosen by `where`, because a slice would ask the host for the numbers.
        rows, columns = (
            (draws[k] * (side - size + 1)).long() + torch.arange(size, device=images.device)
            for k, side in ((1, height), (2, width))
        )
        cropped = images.index_select(2, rows).index_select(3, columns)
        return torch.where(draws[0] < 0.5, cropped, resized)


def _head(dim: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(
        _block(dim, 1), _Residual(_block(dim, kernel_size)), nn.utils.spectral_norm(nn.Conv1d(dim, 1, 1))
    )


def _block(dim: int, kernel_size: int) -> nn.Sequential:
    convolution = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, padding_mode="circular")
    return nn.Sequential(nn.utils.spectral_norm(convolution), LocalBatchNorm(dim), nn.LeakyReLU(0.2))
