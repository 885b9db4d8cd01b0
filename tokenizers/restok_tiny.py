"""Train restok-tiny on the embedded digits: minutes on two CPU cores."""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks import TokenizerTaskConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=TokenizerTaskConfig(preset="restok-tiny"),
        out="runs/restok_tiny",
        samples=60_000,
        batch_size=64,
        optim=OptimConfig(lr=1e-3, warmup_samples=3_000, final_lr_ratio=0.05),
        ema_decay=0.999,
        log_every=2_000,
        checkpoint_every=20_000,
    )


if __name__ == "__main__":
    main(recipe)
