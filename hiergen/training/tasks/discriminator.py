"""What trains the discriminator: its settings, its turn in a step, and the adversarial term that it gives the tokenizer's loss.

The discriminator is the second player of `hiergen.training.tasks.tokenizer`; what it minimizes is in `hiergen.losses.adversarial`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hiergen.checked import Checked, CountOrZero, NotNegative
from hiergen.losses.adaptive_weight import adaptive_weight
from hiergen.losses.adversarial import Adversary, Augmentation
from hiergen.losses.dino_discriminator import DinoDiscriminator, dino_backbone
from hiergen.losses.patch_gan import BlurPoolDiscriminator, PatchDiscriminator
from hiergen.training.optim import OptimConfig


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
