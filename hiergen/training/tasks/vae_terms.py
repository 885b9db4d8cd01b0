"""VA-VAE's objective for training a tokenizer: its settings, and its terms from one forward pass."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from hiergen.losses.vae_objective import VAEObjective, VAEPass
from hiergen.pretrained.teachers import PatchTeacher
from hiergen.pretrained.weights import Frozen
from hiergen.tokenizers.base import TokenizerOutput
from hiergen.training.tasks.term_settings import FoundationConfig, VAEConfig

__all__ = ["FoundationConfig", "VAEConfig", "VAETerms"]


class VAETerms:
    """The objective of one run.

    Args:
        config: Settings.
        tokenizer: A tokenizer of continuous tokens, with `output_weight` and `latent_weight`.
        perceptual_weight: Weight of the perceptual term.
        adversarial_weight: Weight of the adversarial term.

    Raises:
        ValueError: If the tokenizer is none with a Gaussian bottleneck, or does not project its latents to the foundation model's
            channels.
    """

    def __init__(
        self, config: VAEConfig, tokenizer: Any, *, perceptual_weight: float, adversarial_weight: float
    ) -> None:
        if not hasattr(tokenizer, "latent_weight"):
            raise ValueError(
                f"vae needs a tokenizer with a Gaussian bottleneck, such as HieraTok or KLAutoencoder; got {type(tokenizer).__name__}"
            )
        self._tokenizer = tokenizer
        foundation = config.foundation if config.foundation and config.foundation.weight else None
        self._teacher: Frozen | None = None
        margins = {}
        if foundation is not None:
            margins = {"cosine_margin": foundation.cosine_margin, "distance_margin": foundation.distance_margin}
            teacher = PatchTeacher(
                foundation.model, foundation.weights, image_size=foundation.image_size, **foundation.options
            )
            projected = tokenizer.config["alignment_dim"]
            if projected != teacher.dim:
                raise ValueError(
                    f"the foundation model has {teacher.dim} channels, the tokenizer projects its latents to {projected}: "
                    f"set overrides={{'alignment_dim': {teacher.dim}}}"
                )
            self._teacher = Frozen(teacher)
        self._objective = VAEObjective(
            perceptual_weight=perceptual_weight,
            kl_weight=config.kl_weight,
            adversarial_weight=adversarial_weight,
            alignment_weight=foundation.weight if foundation is not None else 0.0,
            **margins,
        )

    def __call__(
        self,
        images: Tensor,
        output: TokenizerOutput,
        *,
        perceptual: Tensor | None,
        fake_logits: Tensor | None,
    ) -> dict[str, Tensor]:
        """Return "loss" and its parts, unweighted and without gradient (see `VAEObjective`).

        What the tokenizer adds besides its divergence (previews) is a mean over pixels and joins multiplied by their number.

        Args:
            images: Images `(b, 3, h, w)` in [-1, 1].
            output: Output of the tokenizer's forward pass.
            perceptual: Perceptual distance of each sample; None for none.
            fake_logits: The discriminator's logits of the reconstruction; None before it takes part.

        Raises:
            ValueError: If the foundation model's map and the latents differ in positions.
        """
        projected = teacher = None
        if self._teacher is not None:
            projected = output.features["alignment"]
            teacher = cast(Tensor, self._teacher.on(images.device)(images))
            if teacher.shape[1] != projected.shape[1]:
                raise ValueError(
                    f"the foundation model's map has {teacher.shape[1]} positions, the latents have {projected.shape[1]}: "
                    "set vae.foundation.image_size to its patch size times the side of the latents"
                )
        parts = self._objective(
            VAEPass(
                images=images,
                reconstruction=output.reconstruction,
                kl=output.features["kl"],
                perceptual=perceptual,
                fake_logits=fake_logits,
                projected=projected,
                teacher=teacher,
                output_weight=self._tokenizer.output_weight,
                latent_weight=self._tokenizer.latent_weight,
            )
        )
        others = {name: loss for name, loss in output.losses.items() if name != "kl"}
        if others:
            parts["loss"] = parts["loss"] + images[0].numel() * torch.stack(list(others.values())).sum()
        return {**parts, **{name: loss.detach() for name, loss in others.items()}}
