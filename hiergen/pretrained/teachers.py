"""Frozen vision transformers of timm as teachers of a tokenizer: a summary vector of each image, and a map of patch features.

Letters: `b` batch, `n` patches, `d` channels.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.environment import require
from hiergen.nn.constants import IMAGENET_STATISTICS, channel_statistics


@dataclasses.dataclass(frozen=True)
class TeacherPreset:
    """A published teacher.

    Attributes:
        model: Name in timm.
        image_size: Side to which images are resized (bicubic); each preset's gives a 16 x 16 map.
        mean: Mean that is subtracted from images in [0, 1].
        std: Deviation that the difference is divided by.
    """

    model: str
    image_size: int
    mean: tuple[float, float, float] = IMAGENET_STATISTICS[0]
    std: tuple[float, float, float] = IMAGENET_STATISTICS[1]


#: As ResTok's code has them (arXiv:2601.03955): all on ImageNet's statistics but SigLIP 2.
TEACHERS: dict[str, TeacherPreset] = {
    "dinov3": TeacherPreset("vit_large_patch16_dinov3.lvd1689m", 256),
    "dinov2": TeacherPreset("vit_large_patch14_dinov2.lvd142m", 224),
    "dinov2_b": TeacherPreset("vit_base_patch14_dinov2.lvd142m", 224),
    "clip": TeacherPreset("vit_large_patch14_clip_224.openai", 224),
    "siglip2": TeacherPreset("vit_large_patch16_siglip_256.v2_webli", 256, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "mae": TeacherPreset("vit_large_patch16_224.mae", 256),
}


class Teacher(nn.Module):
    """A frozen vision transformer: images to a summary of the whole and features of the patches, normalized as its preset says.

    Args:
        name: One of `TEACHERS`.
        weights: File of the weights; None takes timm's cache or download; "random" for tests.
        image_size: Side to which images are resized; None takes the preset's.
        options: Options of `timm.create_model`, e.g. a smaller `depth`.

    Raises:
        ValueError: If the teacher is unknown.
        FileNotFoundError: If the weights are neither named nor in the cache, and cannot be downloaded.
        ImportError: If timm is not installed.
    """

    def __init__(
        self,
        name: str = "dinov3",
        weights: str | Path | None = None,
        *,
        image_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if name not in TEACHERS:
            raise ValueError(f"teacher is {name!r}, expected one of {', '.join(TEACHERS)}")
        preset = TEACHERS[name]
        self.image_size = image_size or preset.image_size
        self.model: Any = timm_network(preset.model, weights, img_size=self.image_size, **options)
        self.dim: int = self.model.embed_dim
        self.constants = channel_statistics(preset.mean, preset.std)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n d"]]:
        """Return the summary (class token, or the mean patch where there is none) and the patches, row-major."""
        constants = self.constants.on(images.device)
        if images.shape[2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size=size, mode="bicubic", align_corners=False)
        x = ((images + 1) / 2 - constants["mean"]) / constants["std"]
        tokens = self.model.forward_features(x.to(next(self.model.parameters()).dtype))
        patches = tokens[:, self.model.num_prefix_tokens :]
        summary = tokens[:, 0] if self.model.num_prefix_tokens else patches.mean(dim=1)
        return summary, patches


class PatchTeacher(nn.Module):
    """A frozen vision transformer of timm: images to one feature per patch.

    The defaults are VA-VAE's DINOv2-L/14 on 224 x 224 pixels, hence a 16 x 16 map. As there, images go in as they are, in [-1, 1],
    not in the teacher's own normalization.

    Args:
        name: Model name in timm.
        weights: File of the weights; None takes timm's cache or download; "random" for tests.
        image_size: Side to which images are resized; the map has `image_size / patch` tokens along each side.
        options: Options of `timm.create_model`, e.g. a smaller `depth`.

    Raises:
        FileNotFoundError: If the weights are neither named nor in the cache, and cannot be downloaded.
        ImportError: If timm is not installed.
    """

    def __init__(
        self,
        name: str = "vit_large_patch14_dinov2.lvd142m",
        weights: str | Path | None = None,
        *,
        image_size: int = 224,
        **options: Any,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.model: Any = timm_network(name, weights, dynamic_img_size=True, **options)
        self.dim: int = self.model.embed_dim
        self.model.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> PatchTeacher:
        """Stay in eval mode, whatever the model around does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return the features of the patches, row-major, class and register tokens left out."""
        size = (self.image_size, self.image_size)
        resized = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        return self.model.forward_features(resized)[:, self.model.num_prefix_tokens :]


def timm_network(name: str, weights: str | Path | None, **options: Any) -> Any:
    """Return a network of timm without its classifier.

    Args:
        name: Name in timm, with the tag of its weights.
        weights: A .safetensors or .pth file of the published weights; None takes timm's cache or download; "random" for none.
        options: Options of `timm.create_model`.

    Raises:
        FileNotFoundError: If the file is missing, or neither cache nor download has the weights.
        ImportError: If timm is not installed.
    """
    timm = require("timm", "images", name)
    if weights == "random":
        return timm.create_model(name, pretrained=False, num_classes=0, **options)
    if weights is not None and not Path(weights).is_file():
        raise FileNotFoundError(f"weights file {str(weights)!r} of {name} does not exist")
    overlay = None if weights is None else {"file": str(weights)}
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **options)
    except OSError as error:
        raise FileNotFoundError(
            f"the weights of {name} are neither in the cache of the Hugging Face Hub nor can they be downloaded; "
            f"name their file as `weights`, or run `hf download timm/{name}` where there is a network (some need a "
            "licence to be accepted first)"
        ) from error
