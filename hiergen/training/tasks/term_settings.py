"""Settings of the terms of a tokenizer's training, importable without PyTorch."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from hiergen.checked import Checked, Count, CountOrZero, NotNegative
from hiergen.pretrained.network_names import LPIPSNetwork, TeacherName
from hiergen.training.optim import OptimConfig


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


@dataclasses.dataclass(frozen=True)
class DecoderConfig(Checked):
    """The decoder alone is trained, on the encoder's mean tokens: codes stay what they are, and generators of them stay good.

    Attributes:
        noise: Most noise on the tokens, in deviations of each channel over the batch; every sample draws its share from 0 up to it.
            Tokens that a generator makes are off by a little, which a decoder that has seen noise forgives. RAE (arXiv:2510.11690) has the
            idea, and draws the share from half of a normal distribution.
    """

    noise: NotNegative = 0.0


@dataclasses.dataclass(frozen=True)
class AdversarialConfig(Checked):
    """A discriminator as second player.

    Attributes:
        weight: Weight of the adversarial term in the tokenizer's loss.
        start_samples: Samples seen before the discriminator and the adversarial term begin.
        is_adaptive: Scale the term so that its gradient at `adaptive_at` equals that of the reconstruction terms.
        adaptive_at: Name of the tokenizer's parameter at which `is_adaptive` compares gradients: its last weight.
        discriminator: "dino" (frozen DINO features, five heads), "patch" (convolutional) or "blur" (convolutional, blurred where it
            halves: ResTok's alternative to DINO).
        augment: Put differentiable augmentation in front.
        lecam_weight: Weight of the LeCam regularization in the discriminator's loss.
        weights: Weight file of the DINO backbone; None takes timm's cache or download; "random" is for trials.
        options: Options of the discriminator: of the backbone in timm, of `PatchDiscriminator` or of `BlurPoolDiscriminator`.
        optim: The discriminator's own optimizer; None takes the run's. Its schedule counts from the start.
    """

    weight: NotNegative = 0.5
    start_samples: CountOrZero = 0
    is_adaptive: bool = False
    adaptive_at: str = "pixel_decoder.conv_out.weight"
    discriminator: Literal["dino", "patch", "blur"] = "dino"
    augment: bool = True
    lecam_weight: NotNegative = 1e-3
    weights: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    optim: OptimConfig | None = None


@dataclasses.dataclass(frozen=True)
class AlignmentConfig(Checked):
    """Align a tokenizer's features with a frozen teacher's.

    Attributes:
        teacher: Name of the teacher.
        weights: Weight file of the teacher; None takes timm's cache or download; "random" is for trials.
        encoder_weight: Weight of the term that holds the mean of the coarsest image tokens against the teacher's summary.
        decoder_weight: Weight of the term that holds the decoder's feature tokens against the teacher's patches.
        encoder_margin: What a cosine of the encoder's term may lack of 1 at no cost.
        decoder_margin: What a cosine of the decoder's term may lack of 1 at no cost.
        options: Options of the teacher: `image_size`, and what timm takes.
    """

    teacher: TeacherName = "dinov3"
    weights: str | None = None
    encoder_weight: NotNegative = 1.0
    decoder_weight: NotNegative = 1.0
    encoder_margin: float = 0.25
    decoder_margin: float = 0.25
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FoundationConfig(Checked):
    """The frozen vision foundation model whose features the latents are aligned with ("VF loss").

    Attributes:
        weight: Weight of the alignment term, after its gradient has been scaled to that of the reconstruction; 0 leaves the model out.
        cosine_margin: What the cosine of a position may lack of 1 at no cost.
        distance_margin: What the cosine of a pair of positions may differ at no cost.
        model: Name of the model in timm.
        image_size: Side to which images are resized; the model's map must have as many positions as the latents.
        weights: Weight file of the model; None takes timm's cache or download; "random" is for trials.
        options: Options of the model in timm.
    """

    weight: NotNegative = 0.1
    cosine_margin: float = 0.5
    distance_margin: float = 0.25
    model: str = "vit_large_patch14_dinov2.lvd142m"
    image_size: Count = 224
    weights: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class VAEConfig(Checked):
    """VA-VAE's objective in place of weighted means: sums over an image, weights that adapt to gradients.

    The perceptual and the adversarial term are set beside it as for every tokenizer; their `weight` is then the objective's.

    Attributes:
        kl_weight: Weight of the divergence, relative to the absolute pixel error *summed* over an image; replaces the tokenizer's own.
        foundation: Alignment with a foundation model; None for the plain variational autoencoder.
    """

    kl_weight: NotNegative = 1e-6
    foundation: FoundationConfig | None = None


@dataclasses.dataclass(frozen=True)
class ProxyConfig(Checked):
    """Proxy codes as a target.

    Attributes:
        tokenizer: Folder, packaged name or Hub repository of the `MaskGITVQ` whose ids are the target. Its codebook and pixel decoder are
            copied into the tokenizer that is trained.
        weight: Weight of the cross-entropy.
    """

    tokenizer: str = "runs/maskgit_vq/model"
    weight: NotNegative = 1.0


@dataclasses.dataclass(frozen=True)
class CodebookConfig(Checked):
    """Watch the codebook.

    Attributes:
        revive_after: Number of samples without a choice of a code after which it is replaced by a latent of the current batch, checked
            as often; None never replaces one.
    """

    revive_after: Count | None = None
