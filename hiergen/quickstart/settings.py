"""What the image quickstart runs with: its settings, and how each family of models is trained and sampled."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from hiergen.data.sources import DataConfig
from hiergen.registry import Kind, get_preset, presets
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.tasks import GeneratorTaskConfig, TokenizerTaskConfig

BATCH_SIZE = 32
#: A generator that trains one level in each step sees so many times the samples of one that trains on all tokens.
LEVELWISE_FACTOR = 2


@dataclasses.dataclass(frozen=True)
class Family:
    """How the quickstart trains, draws and samples the models of one class.

    Attributes:
        kind: "tokenizer" or "generator".
        tokens: What the tokenizer gives or the generator makes: "discrete" or "continuous" tokens.
        lr: Peak learning rate.
        weight_decay: Of the optimizer.
        samples_factor: Training samples over `QuickstartSettings.samples_seen`.
        ema_decay: Decay of the averaged weights.
        curves: Title and log entries of each panel of training curves.
        sampling: Fields of the generator's settings.
    """

    kind: Kind
    tokens: Literal["discrete", "continuous"]
    lr: float
    curves: dict[str, tuple[str, ...]]
    weight_decay: float = 1e-4
    samples_factor: float = 1.0
    ema_decay: float = 0.99
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)


#: By model class.
FAMILIES: dict[str, Family] = {
    "ResTok": Family(kind="tokenizer", tokens="discrete", lr=2e-3, curves={"pixel error": ("pixel",)}),
    "HieraTok": Family(
        kind="tokenizer",
        tokens="continuous",
        lr=1e-3,
        curves={"pixel error": ("pixel",)},
    ),
    "LevelAR": Family(
        kind="generator",
        tokens="discrete",
        lr=1e-3,
        weight_decay=0.05,
        curves={"cross-entropy (nats)": ("loss",), "accuracy": ("accuracy",)},
        sampling={"guidance_scale": 1.5, "guidance_schedule": "constant", "temperature": 1.0, "top_p": 1.0},
    ),
    "FlowTransformer": Family(
        kind="generator",
        tokens="continuous",
        lr=1e-3,
        samples_factor=2.0,
        ema_decay=0.995,
        curves={"velocity error": ("mse",), "direction error": ("cosine",)},
        sampling={"num_steps": 20, "solver": "heun", "timestep_shift": 1.0, "guidance_scale": 1.5},
    ),
    "MaskedAR": Family(
        kind="generator",
        tokens="continuous",
        lr=1e-3,
        samples_factor=1.5,
        ema_decay=0.995,
        curves={"noise error": ("mse",), "variational bound (bits)": ("vb",)},
        sampling={
            "num_steps": 16,
            "guidance_scale": 2.0,
            "guidance_schedule": "constant",
            "temperature": 1.0,
            "head_steps": 25,
            "head_spacing": "leading",
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class QuickstartSettings:
    """Settings of `hiergen quickstart`.

    Attributes:
        out: Folder for models, pictures and the report.
        samples_seen: Training samples of each of the two models; generators of continuous tokens see more
            (`FAMILIES`).
        seed: Of everything random.
        num_generated: Images to generate for the figures, the same number for each class.
        tokenizer: Preset of the tokenizer, of ResTok or HieraTok.
        generator: Preset of the generator: of LevelAR for ResTok's discrete tokens, of FlowTransformer or MaskedAR for HieraTok's
            continuous ones.
    """

    out: str = "quickstart"
    samples_seen: int = 24_000
    seed: int = 0
    num_generated: int = 500
    tokenizer: str = "restok-tiny"
    generator: str = "har-tiny"

    def __post_init__(self) -> None:
        if self.samples_seen < 64:
            raise ValueError(f"samples_seen is {self.samples_seen}, expected at least 64, one batch")
        if self.num_generated < 80 or self.num_generated % 10:
            raise ValueError(f"num_generated is {self.num_generated}, expected a multiple of 10, at least 80")
        given, made = family("tokenizer", self.tokenizer).tokens, family("generator", self.generator).tokens
        if given != made:
            raise ValueError(
                f"tokenizer {self.tokenizer!r} gives {given} tokens, generator {self.generator!r} makes {made} ones; "
                f"expected both alike, e.g. {_example(given)}"
            )


def family(kind: Kind, preset: str) -> Family:
    """Return the family of a preset.

    Raises:
        ValueError: If the preset is unknown, or the quickstart has no settings for its class as this kind of model.
    """
    chosen = get_preset(preset)
    found = FAMILIES.get(chosen.model)
    if found is None or found.kind != kind:
        known = [name for name, entry in FAMILIES.items() if entry.kind == kind]
        raise ValueError(f"{kind} is {preset!r}, a {chosen.model}; expected a preset of {' or '.join(known)}")
    return found


def tokenizer_config(settings: QuickstartSettings) -> TrainConfig:
    """Return the training run of the tokenizer."""
    chosen = family("tokenizer", settings.tokenizer)
    return _train_config(
        settings, chosen, TokenizerTaskConfig(preset=settings.tokenizer, data=DataConfig(), pixel_weight=10.0)
    )


def generator_config(settings: QuickstartSettings) -> TrainConfig:
    """Return the training run of the generator."""
    chosen = family("generator", settings.generator)
    codes = str(Path(settings.out) / "codes")
    return _train_config(settings, chosen, GeneratorTaskConfig(preset=settings.generator, codes=codes))


def sampling(settings: QuickstartSettings) -> dict[str, Any]:
    """Return what the samples are drawn with: fields of the generator's settings."""
    return family("generator", settings.generator).sampling


def _train_config(
    settings: QuickstartSettings, chosen: Family, task: TokenizerTaskConfig | GeneratorTaskConfig
) -> TrainConfig:
    is_levelwise = get_preset(task.preset).config.get("order") == "levelwise"
    samples = round(settings.samples_seen * chosen.samples_factor * (LEVELWISE_FACTOR if is_levelwise else 1))
    return TrainConfig(
        task=task,
        out=str(Path(settings.out) / chosen.kind),
        samples=samples,
        batch_size=BATCH_SIZE,
        seed=settings.seed,
        optim=OptimConfig(
            lr=chosen.lr,
            weight_decay=chosen.weight_decay,
            warmup_samples=min(1_000, samples // 10),
            final_lr_ratio=0.05,
        ),
        ema_decay=chosen.ema_decay,
        log_every=1_000,
        checkpoint_every=10_000,
    )


def _example(tokens: str) -> str:
    names = {
        kind: next(
            name
            for name, preset in presets(kind).items()
            if name.endswith("-tiny") and preset.model in FAMILIES and FAMILIES[preset.model].tokens == tokens
        )
        for kind in ("tokenizer", "generator")
    }
    return f"--tokenizer {names['tokenizer']} --generator {names['generator']}"
