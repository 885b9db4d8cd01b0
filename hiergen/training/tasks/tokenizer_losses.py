"""The optional terms of a tokenizer's training and their settings. None of them is part of the tokenizer that is saved."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiergen.losses.adversarial import Adversary, Augmentation
from hiergen.losses.alignment import cosine_hinge_loss
from hiergen.losses.dino_discriminator import DinoDiscriminator, dino_backbone
from hiergen.losses.patch_gan import BlurPoolDiscriminator, PatchDiscriminator
from hiergen.losses.perceptual import WeightedMix, jittered
from hiergen.pretrained.perceptual import LPIPS, ConvNeXtLogits, LPIPSNetwork
from hiergen.pretrained.teachers import Teacher, TeacherName
from hiergen.pretrained.weights import Frozen
from hiergen.training.optim import OptimConfig


@dataclasses.dataclass(frozen=True)
class PerceptualConfig:
    """A perceptual term.

    Attributes:
        weight: Of the term.
        network: Backbone of LPIPS.
        lpips_part: Share of LPIPS in the term.
        convnext_part: Share of the ConvNeXt-S logits in the term; ResTok's code calls a mixture "lpips-convnext_s-a-b".
        jitter: Pixels of the random shift in front; 0 for none. Published: 15 at 256 x 256.
        weights: Folder of the weight files; None looks into torchvision's cache; "random" for trials without weights.
    """

    weight: float = 1.0
    network: LPIPSNetwork = "vgg"
    lpips_part: float = 1.0
    convnext_part: float = 0.0
    jitter: int = 15
    weights: str | None = None


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
    """A discriminator as second player.

    Attributes:
        weight: Of the term in the tokenizer's loss.
        start_samples: Samples seen before the discriminator and the term begin.
        is_adaptive: Scale the term so that its gradient at `adaptive_at` equals that of the reconstruction terms.
        adaptive_at: Name of the tokenizer's parameter for `is_adaptive`: the last weight.
        discriminator: "dino" (frozen DINO features, five heads), "patch" (convolutional) or "blur" (convolutional, blurred where it
            halves: ResTok's alternative to DINO).
        augment: Put differentiable augmentation in front.
        lecam_weight: Of the LeCam regularization.
        weights: File of the DINO backbone; None takes timm's cache or download; "random" for trials.
        options: Of the backbone in timm, of `PatchDiscriminator` or of `BlurPoolDiscriminator`.
        optim: The discriminator's own optimizer; None takes the run's. Its schedule counts from the start.
    """

    weight: float = 0.5
    start_samples: int = 0
    is_adaptive: bool = False
    adaptive_at: str = "pixel_decoder.conv_out.weight"
    discriminator: Literal["dino", "patch", "blur"] = "dino"
    augment: bool = True
    lecam_weight: float = 1e-3
    weights: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    optim: OptimConfig | None = None


@dataclasses.dataclass(frozen=True)
class AlignmentConfig:
    """Align a tokenizer's features with a frozen teacher's.

    Attributes:
        teacher: Which.
        weights: File of its weights; None takes timm's cache or download; "random" for trials.
        encoder_weight: Of the term of the coarsest image tokens, whose mean is held against the teacher's summary.
        decoder_weight: Of the term of the decoder's feature tokens, held against the teacher's patches.
        encoder_margin: What a cosine may lack of 1 at no cost.
        decoder_margin: Likewise.
        options: Of the teacher: `image_size`, and what timm takes.
    """

    teacher: TeacherName = "dinov3"
    weights: str | None = None
    encoder_weight: float = 1.0
    decoder_weight: float = 1.0
    encoder_margin: float = 0.25
    decoder_margin: float = 0.25
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


class PerceptualTerm:
    """The perceptual distance of reconstructions, behind the random jitter."""

    def __init__(self, config: PerceptualConfig) -> None:
        is_random = config.weights == "random"
        parts: list[tuple[float, nn.Module]] = []
        if config.lpips_part:
            lpips = LPIPS(config.network) if is_random else LPIPS.from_files(config.network, folder=config.weights)
            parts.append((config.lpips_part, lpips))
        if config.convnext_part:
            convnext = ConvNeXtLogits() if is_random else ConvNeXtLogits.from_files(folder=config.weights)
            parts.append((config.convnext_part, convnext))
        self._distance = Frozen(WeightedMix([part for _, part in parts], [share for share, _ in parts]))
        self._jitter = config.jitter

    def __call__(self, reconstruction: Tensor, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return the distance of each image of a batch."""
        distance = self._distance.on(images.device)
        if self._jitter:
            return jittered(distance, reconstruction, images, margin=self._jitter, rng=rng)
        return distance(reconstruction, images)


def make_adversary(config: AdversarialConfig) -> Adversary:
    """Return the second player."""
    if config.discriminator == "dino":
        discriminator: nn.Module = DinoDiscriminator(dino_backbone(config.weights, **config.options))
    else:
        kinds = {"patch": PatchDiscriminator, "blur": BlurPoolDiscriminator}
        discriminator = kinds[config.discriminator](**config.options)
    augmentation = Augmentation() if config.augment else None
    return Adversary(discriminator, augmentation=augmentation, lecam_weight=config.lecam_weight)


class Alignment(nn.Module):
    """The trained projections of a tokenizer's features to a teacher's channels; the teacher itself is no submodule.

    Args:
        config: Which terms.
        tokenizer: Whose features; its config tells their width.

    Raises:
        ValueError: If the tokenizer returns no features for a term.

    Source:
        ResTok, arXiv:2601.03955.
    """

    def __init__(self, config: AlignmentConfig, tokenizer: Any) -> None:
        super().__init__()
        if config.decoder_weight and not tokenizer.config.get("decoder_features", False):
            raise ValueError(
                f"decoder_weight is {config.decoder_weight}, but the tokenizer has no decoder features: "
                "set overrides={'decoder_features': True}, or decoder_weight=0"
            )
        teacher = Teacher(config.teacher, config.weights, **config.options)
        self._config = config
        self._teacher = Frozen(teacher)
        sides = [side for side in ("encoder", "decoder") if getattr(config, f"{side}_weight")]
        self.projections = nn.ModuleDict(
            {side: nn.Linear(tokenizer.config[f"{side}_dim"], teacher.dim, bias=False) for side in sides}
        )

    def forward(self, images: Tensor, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the terms "align_encoder" and "align_decoder", unweighted, as far as they have a weight."""
        summary, patches = cast(Teacher, self._teacher.on(images.device))(images)
        terms = {}
        if "encoder" in self.projections:
            mean = self.projections["encoder"](features["encoder"]).float().mean(dim=1)
            terms["align_encoder"] = cosine_hinge_loss(mean, summary, margin=self._config.encoder_margin)
        if "decoder" in self.projections and "decoder" in features:
            projected = self.projections["decoder"](features["decoder"])
            target = _match_grid(patches, projected.shape[1])
            terms["align_decoder"] = cosine_hinge_loss(projected, target, margin=self._config.decoder_margin)
        return terms


def _match_grid(patches: Tensor, count: int) -> Tensor:
    """Return a square map of `count` positions: the same, or bilinearly resized where the tokenizer's grid differs."""
    if patches.shape[1] == count:
        return patches
    old, new = round(patches.shape[1] ** 0.5), round(count**0.5)
    maps = patches.transpose(1, 2).unflatten(2, (old, old))
    resized = F.interpolate(maps, size=(new, new), mode="bilinear", align_corners=False)
    return resized.flatten(2).transpose(1, 2)
