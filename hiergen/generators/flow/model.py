"""A transformer that carries noise to continuous tokens along a learned velocity field: LightningDiT, and SiT with its flags off.

    x_t = t data + (1 - t) noise,    v(x_t, t, label) = E[data - noise | x_t]

Training regresses v at one random time per sample. Generation integrates dx = v dt from noise (t = 0) to data (t = 1), where guidance
replaces v by v_null + scale (v - v_null). Levels are maps, or videos of latents; all levels form one sequence.

Letters: `b` batch, `n` tokens of all levels (latents), `m` tokens inside the network (patches of latents), `c` channels of a latent,
`d` channels inside, `h w` a latent map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from torch import Tensor, nn

from hiergen.config import to_json
from hiergen.generators.base import Generator, StepCallback
from hiergen.generators.conditioning import (
    TextCondition,
    TextRows,
    Unconditional,
    condition_table,
    drop_labels,
    embed_condition,
    resolve_labels,
    resolve_texts,
)
from hiergen.generators.finite import FiniteSteps
from hiergen.generators.flow.guided import guided_velocity
from hiergen.generators.flow.initialization import init_flow_transformer
from hiergen.generators.flow.latent_patches import LatentPatches
from hiergen.generators.flow.sampling import FlowSettings, hold_tokens
from hiergen.generators.flow.sparse_attention import PlanListener, sparse_attention
from hiergen.kernels.attention import attention as dense_attention
from hiergen.kernels.pyramid_attention import PSAConfig
from hiergen.known import Known
from hiergen.nn.blocks.layers import FeedForwardKind, NormKind, make_norm
from hiergen.nn.blocks.time_embedding import TimeEmbedding
from hiergen.nn.blocks.transformer import ModulatedBlock, modulate
from hiergen.nn.constants import Table
from hiergen.nn.depth.stack import BlockStack, PlanJson, generating
from hiergen.nn.latent_statistics import LatentStandardizer
from hiergen.nn.mixers.grids import MixerBlocks, grid_mixers
from hiergen.nn.positions import axial_rotary_table, common_frame_positions, pairwise_table, sincos_embedding
from hiergen.nn.running.checkpointing import CheckpointedModule
from hiergen.nn.straight_path import (
    TimeDistribution,
    draw_times,
    integrate,
    interpolate,
    velocity_losses,
)
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_from_json
from hiergen.seeding import Rng, draw_normal


class FlowTransformer(Generator, CheckpointedModule):  # type: ignore[misc]  # see Generator
    """A class-conditional flow over the continuous tokens of one tokenizer.

    The defaults are LightningDiT-XL/1 without its latent size. `norm="layer", ffn="gelu", use_rotary=False` is SiT
    (`has_double_output=True` in its published form). Several levels form one sequence on a common frame, and grids may have frames
    before rows and columns; both are ours, the papers have one level of images.

    Args:
        level_specs: The tokenizer's levels as JSON (`specs_to_json`): continuous, on grids of two or three axes, equal channels.
        num_classes: Labels are 0 to num_classes - 1; one more row of the table stands for "no label". None for texts.
        text_shape: Rows and channels of the features of texts, in place of the classes (`TextRows`); None for classes.
        text_encoder: What makes the features, such as `{"name": "bytes"}` (`TextTable`).
        dim: Channels of a token inside the transformer.
        depth: Number of transformer blocks.
        num_heads: Attention heads.
        patch_size: Side of the square of latents that makes one token inside.
        mlp_ratio: Hidden channels of the feed-forward layers over `dim` ("swiglu" takes two thirds of it).
        norm: "rms", or "layer" without parameters.
        ffn: "swiglu" or "gelu".
        use_rotary: Rotate queries and keys by their position, besides the position that is added at the start.
        use_shift: Whether the modulation of a block shifts besides scaling; True in all released models.
        use_qk_norm: Normalize queries and keys; False in all released models.
        has_double_output: The last layer gives twice the channels and the second half is dropped.
        label_dropout: Chance that a label is replaced by "no label" in training; with a hierarchy also that a level is left open.
        class_hierarchy: The classes as a `ClassHierarchy` in JSON, embedded as paths; any node is a label. None has a row per class.
        latent_mean: Mean of each channel of the tokenizer's tokens (`latent_statistics`); None for 0.
        latent_std: Standard deviation of each channel; None for 1.
        latent_multiplier: Standardized tokens are multiplied by it.
        time_distribution: Training times: "logit_normal" or "uniform".
        time_shift: s in t' = s t / (1 + (s - 1) t) of the training times; below 1 more of them are near the noise. The more numbers
            a sample has and the more alike they are, the nearer to the noise is decided what it shows (arXiv:2403.03206, section 5.3.2).
        cosine_weight: Weight of the direction loss beside the squared error; 0 leaves it out.
        attention: Settings of pyramid sparse attention (`PSAConfig` as JSON) in training and sampling; None for dense attention.
            `set_attention` changes it. For models of one level.
        mixer: What takes the place of self-attention, as `{"name": "window", "window": 4}` (`GridMixer`); None is attention everywhere.
        mixer_blocks: Blocks with the mixer: "alternate" is the first and every second one, "all" is for models of one level.

    Raises:
        ValueError: If the levels or sizes do not fit together.

    Source:
        LightningDiT, arXiv:2501.01423; SiT, arXiv:2401.08740; for `attention`, PSA, arXiv:2512.04025.
    """

    settings_class = FlowSettings
    takes_known = frozenset({"levels", "places"})
    _supports_gradient_checkpointing = True
    # Lists, not tuples: diffusers tests for that type.
    _no_split_modules = ["ModulatedBlock"]  # type: ignore[assignment]  # noqa: RUF012
    _keep_in_fp32_modules = ["position_table", "rotary"]  # type: ignore[assignment]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        *,
        level_specs: Sequence[dict[str, Any]],
        num_classes: int | None = 1000,
        text_shape: Sequence[int] | None = None,
        text_encoder: Mapping[str, Any] | None = None,
        dim: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        patch_size: int = 1,
        mlp_ratio: float = 4.0,
        norm: NormKind = "rms",
        ffn: FeedForwardKind = "swiglu",
        use_rotary: bool = True,
        use_shift: bool = True,
        use_qk_norm: bool = False,
        has_double_output: bool = False,
        label_dropout: float = 0.1,
        class_hierarchy: Mapping[str, Any] | None = None,
        latent_mean: Sequence[float] | None = None,
        latent_std: Sequence[float] | None = None,
        latent_multiplier: float = 1.0,
        time_distribution: TimeDistribution = "logit_normal",
        time_shift: float = 1.0,
        cosine_weight: float = 1.0,
        attention: Mapping[str, Any] | None = None,
        mixer: Mapping[str, Any] | None = None,
        mixer_blocks: MixerBlocks = "alternate",
        plan: PlanJson | None = None,
    ) -> None:
        super().__init__()
        self._specs = specs_from_json(level_specs)
        self._patches = LatentPatches(self._specs, patch_size)
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}, expected at least 1")
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads is {num_heads}, expected a divisor of dim {dim}")
        if time_distribution not in get_args(TimeDistribution):
            known = get_args(TimeDistribution)
            raise ValueError(f"time_distribution is {time_distribution!r}, expected one of {known}")
        if not time_shift > 0:
            raise ValueError(f"time_shift is {time_shift}, expected above 0")
        channels = self._specs[-1].dim
        self._compiled: Callable[..., Tensor] | None = None
        self.standardize = LatentStandardizer(channels, latent_mean, latent_std, multiplier=latent_multiplier)
        positions = common_frame_positions(self._patches.grids)
        self.position_table = Table(sincos_embedding(positions, dim))
        self.rotary: Table | None = None
        if use_rotary:
            self.rotary = Table(pairwise_table(axial_rotary_table(positions, dim // num_heads)))
        self._sparse = sparse_attention(attention, self._patches.grids, self.config)
        self._build()
        init_flow_transformer(self)

    def _build(self) -> None:
        config, dim = self.config, self.config["dim"]
        self.patch_embed = nn.Linear(self._patches.dim, dim)
        self.time_embed = TimeEmbedding(dim)
        names = ("num_classes", "text_shape", "class_hierarchy", "text_encoder")
        self.label_embed = condition_table(TextRows, dim, *(config[name] for name in names))
        mixers = grid_mixers(
            config["mixer"], config["mixer_blocks"], config["depth"], dim, config["num_heads"], self._patches.grids
        )
        options = {key: config[key] for key in ("num_heads", "mlp_ratio", "norm", "ffn", "use_shift", "use_qk_norm")}
        reads_rows = config["text_shape"] is not None
        blocks = (ModulatedBlock(dim, mixer=mixer, reads_rows=reads_rows, **options) for mixer in mixers)
        self.blocks = BlockStack(blocks, config["plan"], dim=dim, num_tokens=len(self.position_table()))
        self.final_norm = make_norm(config["norm"], dim)
        self.final_modulation = nn.Linear(dim, 2 * dim)
        self.final_linear = nn.Linear(dim, self._patches.dim * (2 if config["has_double_output"] else 1))

    def set_attention(
        self, attention: PSAConfig | Mapping[str, Any] | None, *, on_plan: PlanListener | None = None
    ) -> None:
        """Take pyramid sparse attention with other settings, or dense attention (None), from now on; the weights stay.

        Args:
            attention: `PSAConfig`, or its JSON form, which is saved with the model.
            on_plan: Called with every plan, e.g. to note densities.

        Raises:
            ValueError: If the model has several levels, or the settings are unknown.
        """
        self._sparse = sparse_attention(attention, self._patches.grids, self.config, on_plan=on_plan)
        self.register_to_config(attention=None if self._sparse is None else to_json(self._sparse.config))

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        return self._specs

    @property
    def makes_unconditional(self) -> bool:
        return self.config["label_dropout"] > 0

    @property
    def null_label(self) -> int | None:
        """The label that stands for "no label"; None for texts."""
        return self.config["num_classes"]

    def velocity(
        self,
        tokens: Float[Tensor, "b n c"],
        time: Float[Tensor, " b"],
        condition: Int[Tensor, "b ..."] | TextCondition,
        *,
        is_dense: bool = False,
    ) -> Float[Tensor, "b n c"]:
        """Return the velocity of standardized tokens.

        Args:
            tokens: All levels, coarse to fine, row-major: x_t.
            time: Time of each sample, 0 (noise) to 1 (data); not scaled by 1000.
            condition: Labels, or `null_label`; with a hierarchy also nodes, or paths `(b, l)`. Or texts that are `aligned`.
            is_dense: Attend densely whatever `attention` is.
        """
        x = self.patch_embed(self._patches.fold(tokens.to(self.patch_embed.weight.dtype)))
        x = x + self.position_table().to(x.dtype)
        told, rows = embed_condition(self.label_embed, condition)
        c = self.time_embed(time) + told
        # Saved with an angle for each channel; the two channels of a pair have the same.
        rotary = self.rotary()[..., ::2].contiguous() if self.rotary is not None else None
        sparse = None if is_dense else self._sparse
        if sparse is not None:
            x = sparse.order.apply(x)
            rotary = None if rotary is None else sparse.order.apply(rotary)
        x = self.blocks(x, c, rotary, attend=dense_attention if sparse is None else sparse, **rows)
        shift, scale = self.final_modulation(F.silu(c)).chunk(2, dim=-1)
        x = self.final_linear(modulate(self.final_norm(x), shift, scale))
        # The second half of a doubled output was meant for a learned variance; no sampler of these models reads it.
        return self._patches.unfold(x if sparse is None else sparse.order.undo(x))

    def forward(
        self, sample: Float[Tensor, "b c h w"], time: Float[Tensor, " b"], condition: Int[Tensor, " b"] | TextCondition
    ) -> Float[Tensor, "b c h w"]:
        """Return `velocity` of a map, for models of one level: the interface of the published models.

        Raises:
            ValueError: If the map is not the level's, or the model has several levels.
        """
        spec = self._specs[-1]
        if len(self._specs) != 1 or tuple(sample.shape[1:]) != (spec.dim, *(spec.grid or ())):
            raise ValueError(
                f"sample has shape {tuple(sample.shape)}, expected a batch of the only level of {self._specs}"
            )
        velocity = self.velocity(sample.flatten(2).transpose(1, 2), time, condition)
        return velocity.transpose(1, 2).unflatten(2, sample.shape[2:])

    def loss(
        self, pyramid: TokenPyramid, condition: Int[Tensor, " b"] | TextCondition, *, rng: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return "loss" = "mse" + cosine_weight * "cosine" at one random time per sample.

        Random draws, in this order: b normal numbers for the times, (b, c, n) normal numbers for the noise, and in train mode, where
        label_dropout is above 0, b uniform numbers that decide which labels are dropped, and with a hierarchy (b, levels) more.

        Args:
            pyramid: Tokens as the tokenizer gives them; they are standardized here.
            condition: Labels, or texts.
            rng: Source of all draws; None for the global one.

        Raises:
            ValueError: If the pyramid is another tokenizer's.
        """
        self.check_pyramid(pyramid)
        data = self.standardize(pyramid.concat())
        time = draw_times(
            data.shape[0],
            self.config["time_distribution"],
            device=data.device,
            shift=self.config["time_shift"],
            rng=rng,
        )
        x_t, target = interpolate(data, self._noise(data.shape[0], data.device, rng).to(data.dtype), time)
        condition = resolve_texts(condition, self.label_embed)
        if self.training:
            condition = drop_labels(condition, self.null_label, self.config["label_dropout"], self.label_embed, rng=rng)
        mse, cosine = velocity_losses(self.velocity(x_t, time, condition), target)
        return {"loss": mse + self.config["cosine_weight"] * cosine, "mse": mse, "cosine": cosine}

    @torch.no_grad()
    def generate(
        self,
        condition: Int[Tensor, " b"] | TextCondition | Unconditional,
        settings: FlowSettings | None = None,
        *,
        known: Known | None = None,
        rng: Rng | None = None,
        callback: StepCallback | None = None,
    ) -> TokenPyramid:
        """Return one pyramid per label, in the tokenizer's own (not standardized) units.

        The only random draw is the noise, (b, c, n) normal numbers, and with solver "sde" as many for each step but the last, and for each
        resampling. The state is kept in at least float32, whatever the weights. With sparse attention the first `warmup_steps` of its settings are
        dense.

        Args:
            condition: Labels, 0 to num_classes - 1, with a hierarchy any node; or texts; or `Unconditional`, where they were dropped.
            settings: Solver, steps and guidance; None for the defaults.
            known: Tokens that are given at any places: along the path they are t tokens + (1 - t) noise, with the noise of the start.
            rng: Source of the noise; None for the global one.
            callback: Called after each step with the `time` that is reached, 0 (noise) to 1, and the standardized state `latents`
                `(b, n, c)`. Levels are complete only after the last one, when it gets the pyramid.

        Raises:
            ValueError: If a label is out of range.
            TypeError: If labels are not int64.
            FloatingPointError: If the velocity holds NaN or infinity.
        """
        settings = settings or FlowSettings()
        labels = resolve_labels(
            condition, self.config["num_classes"], self.config["label_dropout"], self.device, self.label_embed
        )
        known = self.check_known(known, len(labels))
        if known is not None and known.is_complete(len(self._specs)):
            return known.pyramid
        noise = self._noise(len(labels), self.device, rng)
        finite, times = FiniteSteps(type(self).__name__, "the velocity"), settings.times()

        def composed(state: Tensor) -> TokenPyramid:
            return self.tokens_of(state) if known is None else known.compose(self.tokens_of(state))

        def report(step: int, state: Tensor) -> Tensor:
            is_last = step == settings.num_steps - 1
            if is_last:
                finite.check()
            if callback is None:
                return state
            pyramid = composed(state) if is_last else None
            changed = callback(step, pyramid, time=times[step + 1], latents=state)
            if isinstance(changed, TokenPyramid):
                changed = self.standardize(changed.concat())
            return state if changed is None else changed.to(state.dtype)

        warmup = 0 if self._sparse is None else self._sparse.config.warmup_steps
        state = noise.double() if self.dtype == torch.float64 else noise
        with generating(self):
            state = integrate(
                guided_velocity(self, labels, settings, finite, dense_until=times[min(warmup, settings.num_steps)]),
                state,
                times,
                solver=settings.solver,
                draw=lambda: self._noise(len(noise), self.device, rng).to(state.dtype),
                after_step=report,
                hold=None if known is None else hold_tokens(*known.sequence(self._specs), self.standardize, state),
                repeats=settings.resamplings,
            )
        return composed(state)

    def count_steps(self, settings: FlowSettings) -> int:
        return settings.num_steps

    def tokens_of(self, latents: Tensor) -> TokenPyramid:
        return TokenPyramid.split(self.standardize.inverse(latents), self._specs)

    def compile_sampling(self, **options: Any) -> FlowTransformer:
        """Compile the velocity that `generate` calls at every step, in place, one graph per batch size; return the model.

        Training is left as it is.

        Args:
            options: Arguments of `torch.compile`. `mode="reduce-overhead"` records CUDA graphs.
        """
        self._compiled = torch.compile(self.velocity, fullgraph=True, dynamic=False, **options)
        return self

    def _noise(self, batch: int, device: torch.device, rng: Rng | None) -> Tensor:
        shape = (batch, self._specs[-1].dim, sum(spec.num_tokens for spec in self._specs))
        # Drawn channel by channel: for one level these are the numbers that a (b, c, h, w) draw gives.
        return draw_normal(shape, rng=rng, device=device).transpose(1, 2)
