"""The training runs of the image quickstart."""

from __future__ import annotations

from pathlib import Path

from hiergen.data.config import DataConfig
from hiergen.quickstart.settings import Family, QuickstartSettings, family
from hiergen.registry import get_preset
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.tasks.settings import GeneratorTaskConfig, TokenizerTaskConfig

BATCH_SIZE = 32
#: A generator that trains one level in each step sees so many times the samples of one that trains on all tokens.
LEVELWISE_FACTOR = 2


def tokenizer_config(settings: QuickstartSettings) -> TrainConfig:
    """Return the training run of the tokenizer."""
    chosen = family("tokenizer", settings.tokenizer)
    data = DataConfig(source=settings.data)
    return _train_config(settings, chosen, TokenizerTaskConfig(preset=settings.tokenizer, data=data, pixel_weight=10.0))


def generator_config(settings: QuickstartSettings) -> TrainConfig:
    """Return the training run of the generator."""
    chosen = family("generator", settings.generator)
    codes = str(Path(settings.out) / "codes")
    return _train_config(settings, chosen, GeneratorTaskConfig(preset=settings.generator, codes=codes))


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
