"""Train a tokenizer to reconstruct images: a pixel loss and the terms that are configured, each of which has a file beside this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from hiergen.bottlenecks.multiscale import MultiScaleQuantizer
from hiergen.data.sources import open_images
from hiergen.losses.adversarial import Adversary
from hiergen.metrics.pixel import psnr
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.registry import create
from hiergen.seeding import draw_normal, draw_uniform
from hiergen.tokenizers.base import TokenizerOutput
from hiergen.training.optim import OptimConfig
from hiergen.training.tasks.base import Task
from hiergen.training.tasks.codebook_health import CodebookCounter, CodeRevival
from hiergen.training.tasks.discriminator import AdversarialTurns, make_adversary
from hiergen.training.tasks.perceptual_term import PerceptualTerm
from hiergen.training.tasks.proxy_codes import ProxyTerm
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.teacher_alignment import Alignment
from hiergen.training.tasks.vae_terms import VAETerms

__all__ = ["TokenizerPlayer", "TokenizerTask", "TokenizerTaskConfig", "make_players"]


class TokenizerPlayer(nn.Module):
    """A tokenizer with what is trained beside it and thrown away afterwards."""

    def __init__(self, tokenizer: Any, alignment: Alignment | None, revival: CodeRevival | None) -> None:
        super().__init__()
        self.tokenizer, self.alignment, self.revival = tokenizer, alignment, revival


def make_players(config: TokenizerTaskConfig) -> dict[str, nn.Module]:
    """Return "tokenizer" (the bare model where nothing is trained beside it) and, if configured, "discriminator"."""
    tokenizer = create(config.preset, **config.overrides)
    _check_size(config, tokenizer)
    if config.decoder:
        _freeze_encoder(tokenizer, config.preset)
    alignment = Alignment(config.alignment, tokenizer) if config.alignment else None
    after = config.codebook.revive_after if config.codebook else None
    if after and tokenizer.config.get("vocab_size") is None:
        raise ValueError(f"codebook.revive_after is {after}, but {config.preset!r} has no codebook: leave it out")
    revival = CodeRevival(tokenizer.config["vocab_size"], after) if after else None
    players: dict[str, nn.Module] = {"tokenizer": tokenizer}
    if alignment or revival:
        players["tokenizer"] = TokenizerPlayer(tokenizer, alignment, revival)
    if config.adversarial:
        players["discriminator"] = make_adversary(config.adversarial)
    return players


def _freeze_encoder(tokenizer: Any, name: str) -> None:
    """Freeze the parameters that decoding does not read, which are found by decoding once.

    Raises:
        ValueError: If the tokens are discrete (the codebook is the encoder's too), or prefixes of levels are decoded too, which
            nothing would train.
    """
    if any(spec.is_discrete for spec in tokenizer.specs):
        raise ValueError(f"decoder is set, but the tokens of {name!r} are discrete, expected continuous ones")
    if len(tokenizer.specs) > 1 or len(getattr(tokenizer, "preview_heads", ())):
        raise ValueError(f"decoder is set, but {name!r} also decodes its first levels, which it would not train")
    device = next(tokenizer.parameters()).device
    levels = [torch.zeros(1, spec.num_tokens, spec.dim, device=device) for spec in tokenizer.specs]
    tokenizer.decode(TokenPyramid(tuple(levels), tokenizer.specs)).sum().backward()
    for parameter in tokenizer.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def _check_size(config: TokenizerTaskConfig, tokenizer: Any) -> None:
    size = getattr(tokenizer, "frame_size", None) or tokenizer.config.get("image_size")
    for name in ("data", "validation"):
        data = getattr(config, name)
        if size is not None and data is not None and data.size != size:
            raise ValueError(
                f"{name}.size is {data.size}, but the tokenizer takes pictures of {size}x{size} pixels: give "
                f"--task.{name}.size {size}, or --task.overrides.image-size {data.size} and the sizes that follow from it"
            )


class TokenizerTask(Task):
    """Reconstruction: pixel loss plus whatever losses the bottleneck adds, plus the configured terms."""

    def __init__(self, config: TokenizerTaskConfig) -> None:
        self._config = config
        self.players = make_players(config)
        player = self.players["tokenizer"]
        self._beside = player if isinstance(player, TokenizerPlayer) else None
        self.tokenizer: Any = self._beside.tokenizer if self._beside else player
        self._perceptual = PerceptualTerm(config.perceptual) if config.perceptual else None
        self._proxy = ProxyTerm(config.proxy, self.tokenizer) if config.proxy else None
        self._vae: VAETerms | None = None
        if config.vae:
            perceptual, adversarial = (x.weight if x else 0.0 for x in (config.perceptual, config.adversarial))
            self._vae = VAETerms(
                config.vae, self.tokenizer, perceptual_weight=perceptual, adversarial_weight=adversarial
            )
        specs = cast(tuple[LevelSpec, ...], self.tokenizer.specs)
        self._counter = CodebookCounter(specs) if config.codebook else None
        if self._beside and self._beside.revival:
            self.unshardable = (
                "codebook.revive_after writes to the codebook while the loss has it, a copy that does not last"
            )
        self.dataset = open_images(config.data)
        self.validation = open_images(config.validation) if config.validation else None
        self._turns: AdversarialTurns | None = None
        if config.adversarial:
            adversary = cast(Adversary, self.players["discriminator"])
            self._turns = AdversarialTurns(config.adversarial, adversary, self.tokenizer)
        self._samples_seen = 0
        self._revives = False
        self._shown: Tensor | None = None

    @property
    def model(self) -> Any:
        """The tokenizer alone."""
        return self.tokenizer

    def optim(self, player: str) -> OptimConfig | None:
        adversarial = self._config.adversarial
        return adversarial.optim if adversarial and player == "discriminator" else None

    def start(self, player: str) -> int:
        adversarial = self._config.adversarial
        return adversarial.start_samples if adversarial and player == "discriminator" else 0

    def uses(self, player: str) -> tuple[str, ...]:
        return ("discriminator",) if player == "tokenizer" and self._turns and self._turns.is_on else ()

    def begin_step(self, samples_seen: int) -> None:
        before, self._samples_seen = self._samples_seen, samples_seen
        if self._turns:
            self._turns.begin_step(samples_seen)
        if self._beside and self._beside.revival:
            after = self._beside.revival.after
            self._revives = before // after < samples_seen // after

    def summary(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return self._counter.summary(reduce) if self._counter else {}

    def images(self) -> dict[str, Tensor]:
        """Return up to eight images of the last batch, followed by their reconstructions."""
        return {} if self._shown is None else {"images_then_reconstructions": self._shown}

    def validate(self, batch: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        """Return the pixel error as it is trained, and the mean PSNR of the images in dB."""
        reconstruction = self.tokenizer(batch["image"], rng=rng).reconstruction.float()
        return {
            "pixel": self._pixel(reconstruction, batch["image"]),
            "psnr": psnr(reconstruction, batch["image"]).mean(),
        }

    def losses(self, player: str, batch: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        image = batch["image"]
        if player == "discriminator":
            assert self._turns is not None
            return self._turns.losses(image, rng)
        terms: dict[str, Tensor] = {}
        if self._revives:
            self._revives = False
            terms["revived"] = self._revive(image, rng)
        output = self._decode(image, rng) if self._config.decoder else self.tokenizer(image, rng=rng)
        total = self._objective(image, output, terms, rng)
        self._watch(output)
        if "is_substitute" in batch:
            terms["broken_images"] = batch["is_substitute"].float().mean()
        return {"loss": total, **{name: value.detach() for name, value in terms.items()}}

    def _decode(self, image: Tensor, rng: torch.Generator) -> TokenizerOutput:
        """Return what the decoder makes of the mean tokens with noise on them; it alone has gradients."""
        with torch.no_grad():
            pyramid = self.tokenizer.encode(image)
        assert self._config.decoder is not None
        levels = []
        for level in pyramid.levels:
            share = self._config.decoder.noise * draw_uniform((len(level), 1, 1), rng=rng, device=level.device)
            noise = draw_normal(level.shape, rng=rng, device=level.device) * level.float().std((0, 1), correction=0)
            levels.append(level + (share * noise).to(level.dtype))
        pyramid = TokenPyramid(tuple(levels), pyramid.specs)
        return TokenizerOutput(self.tokenizer.decode(pyramid), pyramid)

    def _objective(
        self, image: Tensor, output: TokenizerOutput, terms: dict[str, Tensor], rng: torch.Generator
    ) -> Tensor:
        """Return the loss and add its parts to `terms`; keep the reconstruction for the discriminator's turn."""
        reconstruction = output.reconstruction.float()
        self._shown = torch.cat((image[:8], reconstruction[:8].detach()))
        terms["pixel"] = self._pixel(reconstruction, image)
        distances = self._perceptual(reconstruction, image, rng) if self._perceptual else None
        if distances is not None:
            terms["perceptual"] = distances.mean()
        turns = self._turns if self._turns and self._turns.is_on else None
        if turns:
            turns.keep(reconstruction)
        if self._vae:
            logits = turns.adversary.logits(reconstruction, rng=rng) if turns else None
            terms |= self._vae(image, output, perceptual=distances, fake_logits=logits)
            return terms.pop("loss")
        total = self._config.pixel_weight * terms["pixel"]
        terms |= output.losses
        if self._proxy and self._config.proxy:
            terms |= self._proxy(image, output.features)
            total = total + self._config.proxy.weight * terms["proxy"]
        if self._config.perceptual:
            total = total + self._config.perceptual.weight * terms["perceptual"]
        if turns:
            adversarial, scale = turns.term(reconstruction, total, rng)
            terms |= {"adversarial": adversarial, "adversarial_scale": scale}
            total = total + scale * adversarial
        return total + sum(output.losses.values()) + self._align(image, output, terms)

    def _pixel(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        # Halved, because the published weights of the terms are for images in [0, 1].
        difference = (reconstruction - image) / 2
        return difference.square().mean() if self._config.pixel_loss == "mse" else difference.abs().mean()

    def _align(self, image: Tensor, output: TokenizerOutput, terms: dict[str, Tensor]) -> Tensor | float:
        config = self._config.alignment
        if config is None or self._beside is None or self._beside.alignment is None:
            return 0.0
        found = self._beside.alignment(image, output.features)
        terms |= found
        weights = {"align_encoder": config.encoder_weight, "align_decoder": config.decoder_weight}
        return torch.stack([weights[name] * term for name, term in found.items()]).sum()

    def _watch(self, output: TokenizerOutput) -> None:
        if self._counter:
            self._counter.add(output.pyramid)
        if self._beside and self._beside.revival:
            self._beside.revival.note(output.pyramid, self._samples_seen)

    def _revive(self, image: Tensor, rng: torch.Generator) -> Tensor:
        assert self._beside is not None
        assert self._beside.revival is not None
        with torch.no_grad():
            latents = self.tokenizer.encode_latents(image)
            # ResTok gives its image tokens beside them.
            latents = latents[0] if isinstance(latents, tuple) else latents
            if isinstance(self.tokenizer.quantizer, MultiScaleQuantizer):
                latents = self.tokenizer.quantizer.searched(latents)
        codebook = self.tokenizer.quantizer.codebook
        return self._beside.revival.revive(codebook, latents.float(), self._samples_seen, rng).float()
