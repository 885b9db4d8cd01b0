"""The cascade of MAR-3D: a coarse stage of few tokens, then a fine stage that sees the coarse tokens through noise.

    p(fine, coarse | condition) = p(coarse | condition) p(fine | t noise + (1 - t) coarse, condition)

Each factor is a `MaskedAR`; t is drawn while training and 0.5 while generating.

Letters: `b` batch, `n` tokens of the coarse level, `c` its channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from hiergen.checked import Checked, Count, NotNegative
from hiergen.generators.base import Generator, StepCallback
from hiergen.generators.conditioning import Condition
from hiergen.generators.masked.diffusion_chain import HeadSpacing
from hiergen.generators.masked.model import MaskedAR
from hiergen.generators.masked.settings import MaskedARSettings
from hiergen.known import Known
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_from_json, specs_to_json
from hiergen.seeding import Rng

StageChoice = Literal["both", "low", "high"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedCascadeSettings(MaskedARSettings):
    """How `MaskedCascade` generates: the settings of `MaskedARSettings` for both stages, and what only the fine one has.

    Attributes:
        num_steps: Most steps of each stage, or one number for the coarse and one for the fine stage.
        guidance_scale: Weight of the condition; 3 is what the released program validates with.
        high_guidance_scale: Weight of the condition in the fine stage, which the paper does not state; None takes the same.
        head_spacing: "leading", unlike the released program's "linspace": small cascades were useless with that (docs/log.md).
        low_res_noise: Share of noise mixed into the coarse tokens for the fine stage.

    Raises:
        ValueError: If a value is out of range.
    """

    num_steps: Count | tuple[Count, ...] = 64
    guidance_scale: NotNegative = 3.0
    high_guidance_scale: NotNegative | None = None
    head_spacing: HeadSpacing = "leading"

    def stage(self, index: int) -> MaskedARSettings:
        """Return the settings of the coarse stage (0) or the fine one (1)."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(MaskedARSettings)}
        values["num_steps"] = self.steps_of(index, 2)
        if index == 1 and self.high_guidance_scale is not None:
            values["guidance_scale"] = self.high_guidance_scale
        return MaskedARSettings(**values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig(Checked):
    """What the two stages have in common: entries of `MaskedCascade`'s config, under the same names.

    An encoder and its decoder have the same size here, which `MaskedAR` says once for each.
    """

    num_classes: int | None
    num_buffer: int
    feature_shapes: Sequence[Sequence[int]] | None
    dim: int
    depth: int
    num_heads: int
    norm_eps: float
    attention_dropout: float
    dropout: float
    head_dim: int
    head_depth: int
    diffusion_batch_mul: int
    condition_drop: float
    latent_multiplier: float
    plan: Mapping[str, Any] | None = None

    @classmethod
    def of_cascade(cls, config: Mapping[str, Any]) -> StageConfig:
        """Return the part of a `MaskedCascade` config that both stages share."""
        return cls(**{field.name: config[field.name] for field in dataclasses.fields(cls)})

    @classmethod
    def of_stage(cls, config: Mapping[str, Any]) -> StageConfig:
        """Return what a `MaskedAR` config shares with the other stage.

        Raises:
            ValueError: If encoder and decoder differ in size.
        """
        for name in ("dim", "depth", "heads"):
            encoder, decoder = config[f"encoder_{name}"], config[f"decoder_{name}"]
            if encoder != decoder:
                raise ValueError(
                    f"the coarse stage has encoder_{name} {encoder} and decoder_{name} {decoder}, expected the same"
                )
        size = {"dim": config["encoder_dim"], "depth": config["encoder_depth"], "num_heads": config["encoder_heads"]}
        return cls.of_cascade({**config, **size})

    def options(self) -> dict[str, Any]:
        """Return the arguments of `MaskedAR`."""
        values = dataclasses.asdict(self)
        for name, theirs in (("dim", "dim"), ("depth", "depth"), ("num_heads", "heads")):
            values[f"encoder_{theirs}"] = values[f"decoder_{theirs}"] = values.pop(name)
        return values


class MaskedCascade(Generator):
    """Two `MaskedAR` stages of the same size, `low` and `high`, for the two resolutions of the pyramid VAE.

    The fine stage has the coarse stage's tokens in its prefix, behind the condition, each projected and with a position of its own.
    Noise is mixed into them, t noise + (1 - t) tokens: t uniform in `low_res_noise` while training, where they are the tokenizer's
    tokens, and 0.5 while generating, where they come from the coarse stage. Guidance drops the condition and keeps the coarse tokens,
    unless `drop_low_res`.

    Args:
        level_specs: The tokenizer's two levels (`specs_to_json`).
        num_classes: Number of classes, or None.
        num_buffer: Number of rows that a class fills.
        feature_shapes: `[length, channels]` of every image encoder's features, or None.
        embed_low_res_time: Whether the fine stage is told t.
        drop_low_res: Whether dropping the condition drops the coarse tokens too.
        low_res_noise: Range of t while training.
        dim: Width of encoders and decoders.
        depth: Number of blocks of each encoder and of each decoder.
        num_heads: Attention heads.
        norm_eps: Epsilon of the layer norms: 1e-5 as released, unlike MAR on images.
        attention_dropout: Probability of dropping an attention weight; `dropout` is the probability of dropping a channel.
        head_dim: Width of the diffusion heads, which have `head_depth` residual blocks.
        diffusion_batch_mul: Copies of every token in a training step.
        condition_drop: Probability of losing the condition in training.
        latent_mean: Mean of each channel of each level; None for 0. The release does not standardize.
        latent_std: Standard deviation of each channel of each level; None for 1.
        latent_multiplier: Standardized tokens of both levels are multiplied by it.
        plan: Steps of "encoder" and "decoder" of both stages (`hiergen.nn.depth.plan`); None runs each block once.

    Raises:
        ValueError: If there are not two levels, or an argument of a stage is out of range.

    Source:
        MAR-3D, arXiv:2503.20519. Only its coarse stage was released; where the paper is silent (place of the coarse tokens, what
        guidance drops, t embedding) the choices are ours.
    """

    settings_class = MaskedCascadeSettings
    takes_known = frozenset({"levels", "places"})
    _supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderBlock"]  # type: ignore[assignment]  # noqa: RUF012
    _keep_in_fp32_modules = ["head"]  # type: ignore[assignment]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        *,
        level_specs: Sequence[dict[str, Any]],
        num_classes: int | None = None,
        num_buffer: int = 64,
        feature_shapes: Sequence[Sequence[int]] | None = None,
        embed_low_res_time: bool = True,
        drop_low_res: bool = False,
        low_res_noise: Sequence[float] = (0.4, 0.6),
        dim: int = 1024,
        depth: int = 16,
        num_heads: int = 16,
        norm_eps: float = 1e-5,
        attention_dropout: float = 0.1,
        dropout: float = 0.1,
        head_dim: int = 1024,
        head_depth: int = 6,
        diffusion_batch_mul: int = 4,
        condition_drop: float = 0.1,
        latent_mean: Sequence[Sequence[float]] | None = None,
        latent_std: Sequence[Sequence[float]] | None = None,
        latent_multiplier: float = 1.0,
        plan: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        specs = specs_from_json(level_specs)
        if len(specs) != 2:
            raise ValueError(f"level_specs holds {len(specs)} levels, a cascade has 2")
        own: list[dict[str, Any]] = [{"level_specs": [spec]} for spec in level_specs]
        for name, values in (("latent_mean", latent_mean), ("latent_std", latent_std)):
            if values is not None and len(values) != 2:
                raise ValueError(f"{name} holds {len(values)} lists, expected 2, one per level")
            for stage in (0, 1):
                own[stage][name] = None if values is None else values[stage]
        self._specs = specs
        shared = StageConfig.of_cascade(self.config).options()
        self.low = MaskedAR(**own[0], **shared)
        self.high = MaskedAR(
            **own[1],
            **shared,
            low_res_shape=[specs[0].num_tokens, specs[0].dim],
            embed_low_res_time=embed_low_res_time,
            drop_low_res=drop_low_res,
            low_res_noise=low_res_noise,
        )

    @classmethod
    def from_low_stage(cls, low: MaskedAR, high_spec: LevelSpec, **overrides: Any) -> MaskedCascade:
        """Return a cascade around a trained coarse stage, its fine stage initialized from it (`initialize_high`).

        Args:
            low: A stage of equal encoder and decoder, e.g. what `hiergen.convert.cascade.from_official` returns. Its weights are
                copied.
            high_spec: The fine level.
            overrides: Entries of the cascade's config that `low` does not determine, e.g. `drop_low_res`.

        Raises:
            ValueError: If `low` has more levels than one, or its encoder and decoder differ in size.
        """
        config = dict(low.config)
        if len(low.specs) != 1:
            raise ValueError(f"the coarse stage has {len(low.specs)} levels, expected 1")
        values = dataclasses.asdict(StageConfig.of_stage(config))
        for name in ("latent_mean", "latent_std"):
            if config[name] is not None and name not in overrides:
                raise ValueError(f"the coarse stage has {name}: give {name} of both levels")
        cascade = cls(level_specs=specs_to_json((low.specs[0], high_spec)), **{**values, **overrides})
        cascade.low.load_state_dict(low.state_dict())
        cascade.initialize_high()
        return cascade

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        return self._specs

    @torch.no_grad()
    def initialize_high(self) -> tuple[str, ...]:
        """Start the fine stage from the coarse one: every tensor of equal shape, and the positions of the condition's rows.

        Returns:
            The names of the tensors that were copied in whole.
        """
        source, target = self.low.state_dict(), self.high.state_dict()
        copied = tuple(name for name, value in source.items() if name in target and target[name].shape == value.shape)
        for name in copied:
            target[name].copy_(source[name])
        rows = self.low.prefix.num_condition_rows
        for name in ("transformer.encoder_positions", "transformer.decoder_positions"):
            target[name][:, :rows].copy_(source[name][:, :rows])
        return copied

    def loss(
        self,
        pyramid: TokenPyramid,
        condition: Condition,
        *,
        stages: StageChoice = "both",
        rng: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Return "loss", the sum of the stages' losses, and each stage's terms as "low_mse", "high_vb" and so on.

        The coarse stage draws from `rng` first, then the fine one, each as `MaskedAR.loss` does.

        Args:
            pyramid: Both levels.
            condition: Class labels, or features.
            stages: Train one stage alone, or both.

        Raises:
            ValueError: If the pyramid or the condition are not what the model was built for, or `stages` is unknown.
        """
        if stages not in ("both", "low", "high"):
            raise ValueError(f"stages is {stages!r}, expected 'both', 'low' or 'high'")
        self.check_pyramid(pyramid)
        terms: dict[str, dict[str, Tensor]] = {}
        if stages != "high":
            terms["low"] = self.low.loss(pyramid.prefix(1), condition, rng=rng)
        if stages != "low":
            fine = TokenPyramid(pyramid.levels[1:], self.specs[1:])
            coarse = self.low.standardize(pyramid.levels[0].to(self.device))
            terms["high"] = self.high.loss(fine, condition, low_res=coarse, rng=rng)
        named = {f"{stage}_{name}": value for stage, values in terms.items() for name, value in values.items()}
        return {"loss": torch.stack([values["loss"] for values in terms.values()]).sum(), **named}

    @torch.no_grad()
    def generate(
        self,
        condition: Condition,
        settings: MaskedCascadeSettings | None = None,
        *,
        known: Known | None = None,
        rng: Rng | None = None,
        callback: StepCallback | None = None,
    ) -> TokenPyramid:
        """Return both levels, one sample per row of the condition.

        The coarse stage draws from `rng` first, then the fine one, each as `MaskedAR.generate` does.

        Args:
            condition: Class labels, or features.
            settings: How to generate; None takes `MaskedCascadeSettings()`.
            known: The coarse level of an earlier call, which is then not generated again, or any tokens of either level.
            callback: Called after every step; the coarse level is complete after the coarse stage. `latents` is the state of the stage that
                runs. A coarse level that is changed in the fine stage changes the result alone.

        Raises:
            ValueError: If the condition, the coarse level or the settings do not fit the model.
        """
        settings = settings or MaskedCascadeSettings()
        known = self.check_known(known, self.low.prefix.check(condition, None))
        low, high = (None, None) if known is None else (known.of_levels(0, 1), known.of_levels(1, 2))
        count = _StepCount(callback)
        coarse = self.low.generate(condition, settings.stage(0), known=low, rng=rng, callback=count.forward)
        count.done = coarse
        tokens = self.low.standardize(coarse.levels[0])
        listener = None if callback is None else count.forward
        fine = self.high.generate(condition, settings.stage(1), low_res=tokens, known=high, rng=rng, callback=listener)
        return TokenPyramid((count.done.levels[0], fine.levels[0]), self.specs)

    def count_steps(self, settings: MaskedCascadeSettings) -> int:
        return self.low.count_steps(settings.stage(0)) + self.high.count_steps(settings.stage(1))

    def tokens_of(self, latents: Tensor) -> TokenPyramid:
        """Return the state of the coarse stage as the coarse level, that of the fine one as the fine level alone."""
        stage = self.low if latents.shape[1] == self.specs[0].num_tokens else self.high
        return stage.tokens_of(latents)

    def compile_sampling(self, **options: Any) -> MaskedCascade:
        """Compile both stages, see `MaskedAR.compile_sampling`."""
        self.low.compile_sampling(**options)
        self.high.compile_sampling(**options)
        return self


class _StepCount:
    """Numbers the steps of both stages through and shows the levels of the whole cascade."""

    def __init__(self, callback: StepCallback | None) -> None:
        self._callback = callback
        self._index = 0
        self.done: TokenPyramid | None = None

    def forward(self, _: int, complete: TokenPyramid | None, *, latents: Tensor) -> TokenPyramid | Tensor | None:
        if self._callback is None:
            return None
        if self.done is not None and complete is not None:
            levels, specs = self.done.levels + complete.levels, self.done.specs + complete.specs
            complete = TokenPyramid(levels, specs)
        changed = self._callback(self._index, complete if complete is not None else self.done, latents=latents)
        self._index += 1
        if self.done is None or not isinstance(changed, TokenPyramid):
            return changed
        self.done = changed.prefix(1)
        return TokenPyramid(changed.levels[1:], changed.specs[1:]) if len(changed) > 1 else None
