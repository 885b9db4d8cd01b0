"""Train maskgit-vq-tiny on the embedded digits: minutes on two CPU cores.

Data: embedded digits. Time: minutes on a CPU (79 s of processor time). Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.term_settings import CodebookConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=TokenizerTaskConfig(
            preset="maskgit-vq-tiny", pixel_weight=10.0, codebook=CodebookConfig(revive_after=2_000)
        ),
        out="runs/maskgit_vq_tiny",
        samples=24_000,
        batch_size=32,
        optim=OptimConfig(lr=2e-3, warmup_samples=1_000, final_lr_ratio=0.05),
        ema_decay=0.99,
        log_every=1_000,
        checkpoint_every=10_000,
    )


if __name__ == "__main__":
    main(recipe)
