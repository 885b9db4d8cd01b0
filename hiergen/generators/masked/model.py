"""MAR: continuous tokens generated set by set in random order, each from a small diffusion model.

    p(tokens | condition) = product over steps s of p(tokens that step s reveals | tokens known before, condition)

A transformer with holes turns the known tokens into a vector z for each hidden place; a diffusion head turns z into the token. Training
hides a random share of the tokens, at least 0.7, and asks for all of them. A step of generation is

    z = transformer(condition, known tokens, places asked for)       also for "no condition", with guidance
    tokens = head.sample(z, noise)                                   its predicted noise guided: null + scale (eps - null)

and the cosine schedule says how many places a step asks for. One model serves images (condition: a class) and the stages of the shape
cascade (condition: image features, and the tokens of a coarser stage).

Letters: `b` batch, `n` tokens, `c` channels of a token, `k` hidden tokens, `p` rows of the condition, `d` width of the encoder, `w` width
of the decoder, `m` tokens of a coarser stage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from torch import Tensor

from hiergen.generators.base import Generator, StepCallback
from hiergen.generators.conditioning import (
    ClassPathEmbedding,
    Condition,
    TextCondition,
    draw_dropped,
    unguided_labels,
)
from hiergen.generators.finite import FiniteSteps
from hiergen.generators.masked.diffusion_head import DiffusionHead
from hiergen.generators.masked.orders import (
    MaskedDraws,
    Order,
    Stage,
    make_stages,
    mask_ratio,
    random_orders,
    unmask_counts,
)
from hiergen.generators.masked.prefix import ConditionPrefix, augment_low_res
from hiergen.generators.masked.settings import MaskedARSettings, check_masked_config
from hiergen.generators.masked.transformer import (
    MaskedTransformer,
    MaskedTransformerSize,
    gather_tokens,
)
from hiergen.generators.masked.unmasking import Unmasking, draw_orders, group_samples
from hiergen.known import Known
from hiergen.nn.depth.stack import generating
from hiergen.nn.latent_statistics import ChannelValues, LatentStandardizer
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_from_json
from hiergen.seeding import Rng, draw_normal, draw_uniform


class MaskedAR(Generator):
    """Masked autoregressive generation of continuous tokens with a diffusion head.

    Exactly one of `num_classes`, `text_shape` and `feature_shapes` says what the condition is: class labels `(b,)`, texts, or features of
    image encoders `(b, length, channels)`. With `low_res_shape` the model is the fine stage of a cascade and takes the coarse stage's tokens too.

    `order="random"` generates the tokens of all levels in one random order. `order="levelwise"` generates level by level, coarse
    first: a level's tokens are hidden only while all finer ones are; the order is random inside a level, and levels finer than the
    present one do not enter the transformer at all. A training step then draws one level.

    Args:
        level_specs: The tokenizer's levels (`specs_to_json`), continuous and all of the same channels.
        num_classes: Number of classes, or None.
        text_shape: Rows and channels of the features of texts (`TextRows`), or None.
        text_encoder: What makes the features of texts, such as `{"name": "bytes"}` (`TextTable`).
        num_buffer: Number of rows that a class fills in front of the tokens.
        feature_shapes: `[length, channels]` of every image encoder's features, or None.
        low_res_shape: `[tokens, channels]` of the coarse stage, or None.
        embed_low_res_time: Whether the fine stage is told how much noise was mixed into the coarse tokens.
        drop_low_res: Whether dropping the condition drops the coarse tokens too.
        low_res_noise: Range of the share of noise mixed into the coarse tokens while training.
        encoder_dim: Width of the encoder, which has `encoder_depth` blocks of `encoder_heads` attention heads.
        decoder_dim: Width of the decoder, which has `decoder_depth` blocks of `decoder_heads` attention heads.
        mlp_ratio: Hidden width of a block over its width.
        norm_eps: Epsilon of the layer norms: 1e-6 in MAR, 1e-5 in MAR-3D.
        attention_dropout: Probability of dropping an attention weight; `dropout` is the probability of dropping a channel.
        head_dim: Width of the diffusion head, which has `head_depth` residual blocks and a chain of `num_timesteps` steps.
        diffusion_batch_mul: Copies of every token in a training step, each with its own timestep and noise.
        mask_ratio_min: Smallest share of hidden tokens in training: a normal of mean 1 and `mask_ratio_std`, cut to [this, 1].
        condition_drop: Probability of losing the condition in training; with a hierarchy also of leaving one of its levels open.
        class_hierarchy: The classes as a `ClassHierarchy` in JSON: a class is embedded as a path, and any node of it is a label. None
            gives each class a row of its own.
        order: "random" or "levelwise".
        level_weights: Relative frequency of the levels in level-by-level training; None takes the square roots of their sizes, between
            "every level alike" and "every token alike".
        latent_mean: Mean of each channel of the tokenizer's tokens (`latent_statistics`), or one list per level; None for 0.
        latent_std: Standard deviation of each channel, or one list per level; None for 1.
        latent_multiplier: Standardized tokens are multiplied by it; published MAR multiplies raw KL-16 latents by 0.2325.
        plan: Steps of "encoder" and "decoder" (`hiergen.nn.depth.plan`); None runs each block once.

    Raises:
        ValueError: If an argument is out of range or two do not fit together.

    Source:
        MAR, arXiv:2406.11838; MAR-3D, arXiv:2503.20519. Level by level is ours.
    """

    settings_class = MaskedARSettings
    takes_known = frozenset({"levels", "places"})
    _supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderBlock"]  # type: ignore[assignment]  # noqa: RUF012
    _keep_in_fp32_modules = ["head"]  # type: ignore[assignment]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        *,
        level_specs: Sequence[dict[str, Any]],
        num_classes: int | None = 1000,
        text_shape: Sequence[int] | None = None,
        text_encoder: Mapping[str, Any] | None = None,
        num_buffer: int = 64,
        feature_shapes: Sequence[Sequence[int]] | None = None,
        low_res_shape: Sequence[int] | None = None,
        embed_low_res_time: bool = True,
        drop_low_res: bool = False,
        low_res_noise: Sequence[float] = (0.4, 0.6),
        encoder_dim: int = 768,
        encoder_depth: int = 12,
        encoder_heads: int = 12,
        decoder_dim: int = 768,
        decoder_depth: int = 12,
        decoder_heads: int = 12,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        attention_dropout: float = 0.1,
        dropout: float = 0.1,
        head_dim: int = 1024,
        head_depth: int = 6,
        num_timesteps: int = 1000,
        diffusion_batch_mul: int = 4,
        mask_ratio_min: float = 0.7,
        mask_ratio_std: float = 0.25,
        condition_drop: float = 0.1,
        class_hierarchy: Mapping[str, Any] | None = None,
        order: Order = "random",
        level_weights: Sequence[float] | None = None,
        latent_mean: ChannelValues | None = None,
        latent_std: ChannelValues | None = None,
        latent_multiplier: float = 1.0,
        plan: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._specs = specs_from_json(level_specs)
        check_masked_config(self._specs, self.config)
        sizes = [spec.num_tokens for spec in self._specs]
        self.stages = make_stages(sizes, order)
        token_dim = self._specs[0].dim
        self.standardize = LatentStandardizer(
            token_dim, latent_mean, latent_std, multiplier=latent_multiplier, level_sizes=sizes
        )
        self.prefix = ConditionPrefix.of_config(self.config)
        places = {"token_dim": token_dim, "num_tokens": self.stages[-1].length, "num_prefix": self.prefix.num_rows}
        self.transformer = MaskedTransformer(MaskedTransformerSize.of_config(self.config, **places))
        self.head = DiffusionHead(token_dim, decoder_dim, width=head_dim, depth=head_depth, num_timesteps=num_timesteps)

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        return self._specs

    def forward(
        self,
        tokens: Float[Tensor, "b n c"],
        order: Int[Tensor, "b n"],
        num_masked: int,
        prefix: Float[Tensor, "b p d"],
    ) -> Float[Tensor, "b k w"]:
        """Return what the transformer knows about each hidden token: the condition of the diffusion head.

        Args:
            tokens: Standardized tokens of a stage.
            order: Places of the tokens, the hidden ones first.
            num_masked: Number of hidden tokens.
            prefix: The condition's rows, without positions: `model.prefix(condition)`.
        """
        hidden, visible = order[:, :num_masked], order[:, num_masked:]
        rows = self.transformer.embed_tokens(gather_tokens(tokens, visible), visible)
        return self.transformer(self.transformer.embed_prefix(prefix), rows, visible, hidden, tokens.shape[1])

    def loss(
        self,
        pyramid: TokenPyramid,
        condition: Condition,
        *,
        low_res: Float[Tensor, "b m c"] | None = None,
        rng: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Return "loss" = "mse" + "vb", each a mean over the hidden tokens, their channels and copies.

        "mse" is the squared error of the predicted noise, "vb" the variational bound in bits that trains the variance. The random
        parts are drawn from `rng` in the order of `MaskedDraws` (dropout aside, which PyTorch draws from its own).

        Args:
            pyramid: All levels of the tokenizer.
            condition: Class labels, or features.
            low_res: Standardized tokens of the coarse stage, where the model takes them; noise is mixed in here.

        Raises:
            ValueError: If the pyramid or the condition are not what the model was built for.
        """
        self.check_pyramid(pyramid)
        batch = self.prefix.check(condition, low_res)
        if batch != pyramid.batch_size:
            raise ValueError(f"condition holds {batch} samples, the pyramid {pyramid.batch_size}")
        tokens = self.standardize(pyramid.concat().to(self.device))
        draws = self.draw(batch, rng=rng, dtype=tokens.dtype)
        table = getattr(self.prefix, "class_embedding", None)
        if draws.drop is not None and isinstance(table, ClassPathEmbedding) and isinstance(condition, Tensor):
            condition = table.drop(condition, self.config["condition_drop"], rng=rng)
        return self.loss_of_draws(tokens, condition, draws, low_res=low_res)

    def draw(
        self, batch: int, *, rng: torch.Generator | None = None, dtype: torch.dtype = torch.float32
    ) -> MaskedDraws:
        """Draw the random parts of a training step, in the order of `MaskedDraws`; the whole batch has one mask ratio."""
        config: Any = self.config
        device = self.device
        stage = self._draw_stage(rng)
        u = float(draw_uniform((), rng=rng, device=torch.device("cpu")))
        num_masked = math.ceil(
            stage.num_tokens * mask_ratio(u, minimum=config.mask_ratio_min, std=config.mask_ratio_std)
        )
        order = random_orders(batch, stage, rng=rng, device=device)
        time = noise = drop = None
        if config.low_res_shape is not None:
            low, high = config.low_res_noise
            time = low + (high - low) * draw_uniform((batch,), rng=rng, device=device)
            noise = draw_normal((batch, *config.low_res_shape), rng=rng, device=device, dtype=dtype)
        if self.training and config.condition_drop > 0:
            drop = draw_dropped(batch, config.condition_drop, rng=rng, device=device)
        rows = (config.diffusion_batch_mul, batch, num_masked)
        timesteps = (draw_uniform(rows, rng=rng, device=device) * config.num_timesteps).long()
        head_noise = draw_normal((*rows, self.specs[0].dim), rng=rng, device=device, dtype=dtype)
        return MaskedDraws(stage, num_masked, order, time, noise, drop, timesteps, head_noise)

    def loss_of_draws(
        self,
        tokens: Float[Tensor, "b n c"],
        condition: Condition,
        draws: MaskedDraws,
        *,
        low_res: Float[Tensor, "b m c"] | None = None,
    ) -> dict[str, Tensor]:
        """Return the loss of standardized tokens of all levels, given the random parts (see `loss`)."""
        if low_res is not None and draws.low_res_time is not None and draws.low_res_noise is not None:
            low_res = augment_low_res(low_res, draws.low_res_time, draws.low_res_noise)
        prefix = self.prefix(condition, low_res, draws.low_res_time, draws.drop)
        tokens = tokens[:, : draws.stage.length]
        z = self(tokens, draws.order, draws.num_masked, prefix)
        target = gather_tokens(tokens, draws.order[:, : draws.num_masked]).detach()
        copies = len(draws.timesteps)
        mse, bound = self.head.loss(
            target.expand(copies, -1, -1, -1), z.expand(copies, -1, -1, -1), draws.timesteps, draws.noise
        )
        return {"loss": (mse + bound).mean(), "mse": mse.mean(), "vb": bound.mean()}

    @torch.no_grad()
    def generate(
        self,
        condition: Condition,
        settings: MaskedARSettings | None = None,
        *,
        low_res: Float[Tensor, "b m c"] | None = None,
        known: Known | None = None,
        rng: Rng | None = None,
        callback: StepCallback | None = None,
    ) -> TokenPyramid:
        """Return one pyramid per row of the condition, without dropout whatever the mode of the module.

        Drawn from `rng`: the noise mixed into `low_res`, if any; then for every stage its orders, and for every step of it the
        diffusion head's noise `(head_steps, b, tokens of the step, c)`. A generator on the model's device saves copies.

        Args:
            condition: Class labels `(b,)`, with a hierarchy any node; or features.
            settings: How to generate; None takes `MaskedARSettings()`.
            low_res: Standardized tokens of the coarse stage, where the model takes them.
            known: Tokens that are given. They are visible from the start, those of finer levels with `order="levelwise"` from the stage of
                their level on. The schedule counts the others of each sample (`hiergen.generators.masked.unmasking`).
            callback: Called after every step with the complete levels, and as `latents` the standardized tokens `(b, n, c)`, hidden ones 0.

        Raises:
            ValueError: If the condition or the settings do not fit the model.
            FloatingPointError: If the tokens of a step hold NaN or infinity.
        """
        settings = settings or MaskedARSettings()
        batch, wide = self.prefix.check(condition, low_res), torch.promote_types(self.dtype, torch.float32)
        known, given, index = self.check_known(known, batch), None, 0
        if known is not None and known.is_complete(len(self._specs)):
            return known.pyramid
        finite = FiniteSteps(type(self).__name__, "tokens")
        with generating(self):
            state = Unmasking(
                self, self._sampling_prefix(condition, settings, low_res, rng, wide), settings, rng=rng, dtype=wide
            )
            if known is not None:
                held, given = known.sequence(self._specs)
                state.put(self.standardize(held).masked_fill(~given[..., None], 0))
            for number, stage in enumerate(self.stages):
                groups = group_samples(stage, settings.steps_of(number, len(self.stages)), settings, given)
                if groups:
                    order = draw_orders(batch, stage, given, rng=rng, device=self.device)
                last = max((len(group.counts) for group in groups), default=0) - 1
                for step in range(last + 1):
                    for group in groups:
                        if step < len(group.counts):
                            values = state.reveal(group, step, order, stage.length)
                            finite.note(values, f"step {index}, level {stage.level}")
                    if callback is not None:
                        done = stage.length - (0 if step == last else stage.num_tokens)
                        complete = self._composed(state.tokens[:, :done], known) if done else None
                        changed = callback(index, complete, latents=state.tokens)
                        if changed is not None:
                            state.put(
                                self.standardize(changed.concat()) if isinstance(changed, TokenPyramid) else changed
                            )
                    index += 1
        finite.check()
        return self._composed(state.tokens, known)

    def count_steps(self, settings: MaskedARSettings) -> int:
        steps = (settings.steps_of(number, len(self.stages)) for number in range(len(self.stages)))
        return sum(len(unmask_counts(stage.num_tokens, count)) for stage, count in zip(self.stages, steps, strict=True))

    def tokens_of(self, latents: Tensor) -> TokenPyramid:
        return TokenPyramid.split(self.standardize.inverse(latents), self.specs)

    def _composed(self, tokens: Tensor, known: Known | None) -> TokenPyramid:
        """Return standardized tokens as levels, with the tokens that are given as they were given."""
        made = self.tokens_of(tokens)
        return made if known is None else known.compose(made)

    def _sampling_prefix(
        self,
        condition: Condition,
        settings: MaskedARSettings,
        low_res: Tensor | None,
        rng: Rng | None,
        wide: torch.dtype,
    ) -> Tensor:
        """Return the embedded prefix, `(b, p, d)`, or with guidance that of "no condition" below it, `(2 b, p, d)`."""
        time = None
        if low_res is not None:
            noise = draw_normal(tuple(low_res.shape), rng=rng, device=self.device, dtype=wide)
            time = torch.full((len(low_res),), settings.low_res_noise, device=self.device)
            low_res = augment_low_res(low_res.to(self.device, wide), time, noise)
        prefix = self.prefix(condition, low_res, time)
        if settings.is_guided:
            drop: Tensor | None = torch.ones(len(prefix), dtype=torch.bool, device=self.device)
            if isinstance(condition, TextCondition) and condition.negative is not None:
                condition, drop = condition.negative, None
            elif settings.guidance_against == "parent":
                null, table = self.config["num_classes"], getattr(self.prefix, "class_embedding", None)
                condition = unguided_labels(cast(Tensor, condition), null, "parent", table)
                drop = condition == null
            prefix = torch.cat((prefix, self.prefix(condition, low_res, time, drop)))
        return self.transformer.embed_prefix(prefix)

    def compile_sampling(self, **options: Any) -> MaskedAR:
        """Compile what `generate` repeats, in place: the transformer and a step of the diffusion head; return the model.

        Shapes are known on the host, so no step compiles anything once the first image is made. Training is left as it is.

        Args:
            options: Arguments of `torch.compile`. `mode="reduce-overhead"` records CUDA graphs, one for each number of visible tokens and
                of tokens of a step.
        """
        self.transformer.compile_sampling(**options)
        self.head.compile_sampling(**options)
        return self

    def _draw_stage(self, rng: torch.Generator | None) -> Stage:
        if len(self.stages) == 1:
            return self.stages[0]
        config: Any = self.config
        weights = config.level_weights or [math.sqrt(stage.num_tokens) for stage in self.stages]
        edges = torch.tensor(weights, dtype=torch.float64, device="cpu").cumsum(0)
        u = float(draw_uniform((), rng=rng, device=torch.device("cpu")))
        return self.stages[int(torch.searchsorted(edges, u * edges[-1], right=True))]
