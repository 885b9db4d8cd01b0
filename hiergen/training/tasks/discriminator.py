"""What trains the discriminator: its settings, its turn in a step, and the adversarial term that it gives the tokenizer's loss.

The discriminator is the second player of `hiergen.training.tasks.tokenizer`; what it minimizes is in `hiergen.losses.adversarial`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hiergen.losses.adaptive_weight import adaptive_weight
from hiergen.losses.adversarial import Adversary, Augmentation
from hiergen.losses.dino_discriminator import DinoDiscriminator, dino_backbone
from hiergen.losses.patch_gan import BlurPoolDiscriminator, PatchDiscriminator
from hiergen.training.tasks.term_settings import AdversarialConfig


def make_adversary(config: AdversarialConfig) -> Adversary:
    """Return the discriminator with what it minimizes: the second player."""
    if config.discriminator == "dino":
        discriminator: nn.Module = DinoDiscriminator(dino_backbone(config.weights, **config.options))
    else:
        kinds = {"patch": PatchDiscriminator, "blur": BlurPoolDiscriminator}
        discriminator = kinds[config.discriminator](**config.options)
    augmentation = Augmentation() if config.augment else None
    return Adversary(discriminator, augmentation=augmentation, lecam_weight=config.lecam_weight)


class AdversarialTurns:
    """The two sides of adversarial training in a step: first the tokenizer's term, then the discriminator's losses.

    Args:
        config: Settings.
        adversary: The second player.
        tokenizer: The first player's model.

    Attributes:
        adversary: The second player.
        is_on: Whether the discriminator takes part yet; set by `begin_step`.
    """

    def __init__(self, config: AdversarialConfig, adversary: Adversary, tokenizer: Any) -> None:
        self._config, self.adversary, self._tokenizer = config, adversary, tokenizer
        self.is_on = False
        self._fake: Tensor | None = None

    def begin_step(self, samples_seen: int) -> None:
        self.is_on = samples_seen >= self._config.start_samples

    def keep(self, reconstruction: Tensor) -> None:
        """Keep the tokenizer's reconstruction for the discriminator's turn."""
        self._fake = reconstruction.detach()

    def term(self, reconstruction: Tensor, others: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the tokenizer's adversarial term and its weight, which may adapt to the gradient of the `others`."""
        config = self._config
        term = self.adversary.generator_loss(reconstruction, rng=rng)
        scale = torch.full((), config.weight, device=reconstruction.device)
        if config.is_adaptive:
            scale = scale * adaptive_weight(others, term, self._tokenizer.get_parameter(config.adaptive_at))
        return term, scale

    def losses(self, image: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the discriminator's losses on a batch and the reconstruction of it that was kept."""
        assert self._fake is not None
        found: dict[str, Tensor] = self.adversary(image, self._fake, rng=rng)
        return found
