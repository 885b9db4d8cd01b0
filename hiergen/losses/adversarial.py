"""The second player of a tokenizer's training: a discriminator with LeCam regularization behind random augmentation.

An `Adversary` holds what the discriminator minimizes (`forward`) and what the tokenizer minimizes (`generator_loss`). It wraps one of
three discriminators: `hiergen.losses.patch_gan` has two, `hiergen.losses.dino_discriminator` the third. The task in
`hiergen.training.tasks.tokenizer` trains it, in turn with the tokenizer; its options are `AdversarialConfig` in
`hiergen.training.tasks.term_settings`.

Letters: `b` batch, `c h w` image in [-1, 1].
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.losses.patch_gan import hinge_discriminator_loss, hinge_generator_loss
from hiergen.nn.running.precision import widen
from hiergen.nn.running.processes import process_mean


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Differentiable augmentation; each policy is applied to the whole batch with `probability`, its draws are per sample.

    Attributes:
        probability: Probability that a call applies a policy, drawn for each of the three policies.
        brightness: Largest shift of the colors of images in [0, 1], either way.
        saturation: Largest factor of the distance to a pixel's mean over channels; the smallest is 0.
        contrast: Smallest and largest factor of the distance to an image's mean.
        shift: Largest translation, as a part of each side.
        cutout: Side of the square that is blackened, as a part of each side.

    Source:
        DiffAugment, arXiv:2006.10738; ResTok, arXiv:2601.03955, for the probability.
    """

    probability: float = 0.5
    brightness: float = 0.5
    saturation: float = 2.0
    contrast: tuple[float, float] = (0.5, 1.5)
    shift: float = 0.125
    cutout: float = 0.2

    def __call__(
        self, images: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Return augmented images; black fills what is shifted in or cut out."""
        chosen = _uniform(images, (3,), rng) < self.probability
        # In [0, 1], where black is 0. Always computed and chosen by `where`: a branch would wait for the device.
        x = (images + 1) / 2
        x = torch.where(chosen[0], self._color(x, rng), x)
        x = torch.where(chosen[1], self._translate(x, rng), x)
        x = torch.where(chosen[2], self._cut(x, rng), x)
        return 2 * x - 1

    def _color(self, x: Tensor, rng: torch.Generator | None) -> Tensor:
        shift, saturation, contrast = _uniform(x, (3, len(x), 1, 1, 1), rng)
        x = x + (2 * shift - 1) * self.brightness
        mean = x.mean(dim=1, keepdim=True)
        x = (x - mean) * (saturation * self.saturation) + mean
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        low, high = self.contrast
        return (x - mean) * (low + contrast * (high - low)) + mean

    def _translate(self, x: Tensor, rng: torch.Generator | None) -> Tensor:
        draws = _uniform(x, (2, len(x), 1), rng)
        places, valid = [], []
        for draw, side in zip(draws, x.shape[2:], strict=True):
            reach = int(side * self.shift + 0.5)
            source = torch.arange(side, device=x.device) + (draw * (2 * reach + 1)).long() - reach
            valid.append((source >= 0) & (source < side))
            places.append(source.clamp(0, side - 1))
        rows = places[0][:, None, :, None].expand(x.shape)
        columns = places[1][:, None, None, :].expand(x.shape)
        moved = x.gather(2, rows).gather(3, columns)
        return moved * (valid[0][:, None, :, None] & valid[1][:, None, None, :])

    def _cut(self, x: Tensor, rng: torch.Generator | None) -> Tensor:
        draws = _uniform(x, (2, len(x), 1), rng)
        inside = []
        for draw, side in zip(draws, x.shape[2:], strict=True):
            length = int(side * self.cutout + 0.5)
            # An even square has no middle pixel, so its center may lie on one more line between pixels.
            start = (draw * (side + 1 - length % 2)).long() - length // 2
            place = torch.arange(side, device=x.device)
            inside.append((place >= start) & (place < start + length))
        return x * ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])


class Adversary(nn.Module):
    """A discriminator, what it minimizes, and what it makes the tokenizer minimize.

    Args:
        discriminator: Images in [-1, 1] to logits; a `DinoDiscriminator` also takes `rng`.
        augmentation: Augmentation of the images in front of the discriminator; None for none.
        lecam_weight: Weight of the LeCam regularization.
        lecam_decay: Decay of the moving averages of the mean logits, which start at 0; means are over all processes.

    Source:
        LeCam, arXiv:2104.03310; ResTok, arXiv:2601.03955.
    """

    ema_real_logits_mean: Tensor
    ema_fake_logits_mean: Tensor

    def __init__(
        self,
        discriminator: nn.Module,
        *,
        augmentation: Augmentation | None = None,
        lecam_weight: float = 1e-3,
        lecam_decay: float = 0.999,
    ) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.augmentation = augmentation
        self.lecam_weight, self.lecam_decay = lecam_weight, lecam_decay
        self.register_buffer("ema_real_logits_mean", torch.zeros(()))
        self.register_buffer("ema_fake_logits_mean", torch.zeros(()))

    def logits(self, images: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None) -> Tensor:
        """Return the discriminator's logits of augmented images."""
        if self.augmentation is not None:
            images = self.augmentation(images, rng=rng)
        takes_rng: dict[str, Any] = {"rng": rng} if hasattr(self.discriminator, "backbone") else {}
        return self.discriminator(images, **takes_rng)

    def generator_loss(
        self, fake: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None
    ) -> Float[Tensor, ""]:
        """Return what the tokenizer minimizes; `fake` are reconstructions with gradients."""
        return hinge_generator_loss(self.logits(fake, rng=rng))

    def forward(
        self,
        real: Float[Tensor, "b c h w"],
        fake: Float[Tensor, "b c h w"],
        *,
        rng: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Return what the discriminator minimizes ("loss"), and for the log the parts of it and the mean logits.

        In train mode the moving averages are updated after they have been used.
        """
        real_logits = widen(self.logits(real.detach(), rng=rng))
        fake_logits = widen(self.logits(fake.detach(), rng=rng))
        hinge = hinge_discriminator_loss(real_logits, fake_logits)
        real_mean, fake_mean = process_mean(real_logits.mean()), process_mean(fake_logits.mean())
        lecam = lecam_loss(real_mean, fake_mean, self.ema_real_logits_mean, self.ema_fake_logits_mean)
        if self.training:
            with torch.no_grad():
                # Replaced and not written to: the backward pass still reads the old ones.
                self.ema_real_logits_mean = torch.lerp(real_mean, self.ema_real_logits_mean, self.lecam_decay)
                self.ema_fake_logits_mean = torch.lerp(fake_mean, self.ema_fake_logits_mean, self.lecam_decay)
        parts = {"hinge": hinge, "lecam": lecam, "real_logits": real_mean, "fake_logits": fake_mean}
        return {"loss": hinge + self.lecam_weight * lecam, **{name: part.detach() for name, part in parts.items()}}


def lecam_loss(
    real_mean: Float[Tensor, ""], fake_mean: Float[Tensor, ""], real_average: Tensor, fake_average: Tensor
) -> Float[Tensor, ""]:
    """Return relu(real_mean - fake_average)^2 + relu(real_average - fake_mean)^2: the logits of either kind should stay near the average of the other."""
    return F.relu(real_mean - fake_average).square() + F.relu(real_average - fake_mean).square()


def _uniform(like: Tensor, shape: tuple[int, ...], rng: torch.Generator | None) -> Tensor:
    device = like.device if rng is None else rng.device
    return torch.rand(shape, generator=rng, device=device, dtype=widen(like).dtype).to(like.device)
