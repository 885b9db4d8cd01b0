"""The training objective of VA-VAE: sums over pixels, with weights that adapt to gradients.

Letters: `b` batch, `c h w` image, `n` positions, `d` channels of the teacher.
"""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from hiergen.losses.adaptive_weight import adaptive_weight
from hiergen.losses.alignment import cosine_hinge_loss, distance_matrix_loss
from hiergen.losses.patch_gan import hinge_generator_loss


@dataclasses.dataclass(frozen=True)
class VAEPass:
    """What the objective needs from one forward pass of a variational tokenizer.

    Attributes:
        images: Images that were encoded.
        reconstruction: Decoded images, with gradients.
        kl: Divergence summed over a sample's latents, averaged over samples.
        perceptual: Perceptual distance of each sample (LPIPS); None leaves the term out.
        fake_logits: The discriminator's logits of the reconstruction; None before it takes part.
        projected: The latents, projected to the teacher's channels; None leaves alignment out.
        teacher: The teacher's features at the same positions.
        output_weight: The decoder's last weight: where the adversarial gradient is measured.
        latent_weight: The encoder's last weight: where the alignment gradient is measured.
    """

    images: Float[Tensor, "b c h w"]
    reconstruction: Float[Tensor, "b c h w"]
    kl: Float[Tensor, ""]
    perceptual: Float[Tensor, " b"] | None = None
    fake_logits: Tensor | None = None
    projected: Float[Tensor, "b n d"] | None = None
    teacher: Float[Tensor, "b n d"] | None = None
    output_weight: Tensor | None = None
    latent_weight: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class VAEObjective:
    """Weights of the objective; the defaults are those of VA-VAE with DINOv2 alignment, trained for 50 epochs.

    Attributes:
        perceptual_weight: Weight of the perceptual distance, relative to the absolute pixel error.
        kl_weight: Weight of the divergence, relative to the pixel error *summed* over the image.
        adversarial_weight: Weight of the adversarial term after its gradient has been scaled to that of the reconstruction.
        alignment_weight: Weight of the alignment term after its gradient has been scaled to that of the reconstruction.
        cosine_margin: Margin of `cosine_hinge_loss`.
        distance_margin: Margin of `distance_matrix_loss`.

    Source:
        VA-VAE, arXiv:2501.01423. Its log-variance of the pixel likelihood is no optimized parameter there and stays 0, so it is
        left out. The adversarial term starts about 2500 batches into training (its "5001" counts two optimizers); the long
        schedule has alignment_weight 0.5 with margins 0, then 0.1 with margins 0, then 0.1 with 0.5 and 0.25.
    """

    perceptual_weight: float = 1.0
    kl_weight: float = 1e-6
    adversarial_weight: float = 0.5
    alignment_weight: float = 0.1
    cosine_margin: float = 0.5
    distance_margin: float = 0.25

    def __call__(self, step: VAEPass) -> dict[str, Tensor]:
        """Return "loss" and its parts: "nll", "kl", "adversarial", "adversarial_scale", "alignment", "alignment_scale".

        Raises:
            ValueError: If a term has no weight tensor to measure its gradient at, or alignment has no teacher.
        """
        nll = reconstruction_nll(
            step.images, step.reconstruction, perceptual=step.perceptual, perceptual_weight=self.perceptual_weight
        )
        parts = {"nll": nll, "kl": step.kl}
        total = nll + self.kl_weight * step.kl
        if step.fake_logits is not None:
            if step.output_weight is None:
                raise ValueError("fake_logits came without output_weight, which the adversarial weight is measured at")
            adversarial = hinge_generator_loss(step.fake_logits)
            scale = adaptive_weight(nll, adversarial, step.output_weight, maximum=1e4)
            total = total + self.adversarial_weight * scale * adversarial
            parts |= {"adversarial": adversarial, "adversarial_scale": scale}
        if step.projected is not None and self.alignment_weight > 0:
            if step.latent_weight is None or step.teacher is None:
                raise ValueError("projected came without latent_weight and teacher, which alignment needs")
            alignment = cosine_hinge_loss(step.projected, step.teacher, margin=self.cosine_margin)
            alignment = alignment + distance_matrix_loss(step.projected, step.teacher, margin=self.distance_margin)
            scale = adaptive_weight(nll, alignment, step.latent_weight, maximum=1e8)
            total = total + self.alignment_weight * scale * alignment
            parts |= {"alignment": alignment, "alignment_scale": scale}
        return {"loss": total, **{name: value.detach() for name, value in parts.items()}}


def reconstruction_nll(
    images: Float[Tensor, "b c h w"],
    reconstruction: Float[Tensor, "b c h w"],
    *,
    perceptual: Float[Tensor, " b"] | None = None,
    perceptual_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """Return sum(|x - y| + perceptual_weight * perceptual) / b; the sum runs over all c h w entries, of the second term too.

    Source:
        Latent diffusion, arXiv:2112.10752, with log-variance 0.
    """
    if reconstruction.dtype != torch.float64:
        images, reconstruction = images.float(), reconstruction.float()
    nll = (images - reconstruction).abs().sum() / images.shape[0]
    if perceptual is None:
        return nll
    return nll + perceptual_weight * perceptual.to(nll.dtype).mean() * images[0].numel()
