"""Train var-tiny, which predicts a scale at a time, on the codes of multiscale-vq-tiny.

First: `python tokenizers/multiscale_vq_tiny.py` and `hiergen encode --tokenizer runs/multiscale_vq_tiny/model --out
runs/multiscale_vq_tiny/codes`.

Data: codes of multiscale-vq-tiny. Time: three minutes of one CPU core (161 s of processor time). Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import GeneratorTaskConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(
            preset="var-tiny", codes="runs/multiscale_vq_tiny/codes", tokenizer="runs/multiscale_vq_tiny/model"
        ),
        out="runs/var_tiny",
        samples=12_000,
        batch_size=32,
        optim=OptimConfig(lr=1e-3, weight_decay=0.05, warmup_samples=1_000, final_lr_ratio=0.05),
        ema_decay=0.99,
        log_every=1_000,
        checkpoint_every=10_000,
    )


if __name__ == "__main__":
    main(recipe)
