"""Train har-tiny on the codes of restok-tiny.

First: `python tokenizers/restok_tiny.py` and `hiergen encode --tokenizer runs/restok_tiny/model --out runs/restok_tiny/codes`.

Data: codes of restok-tiny. Time: a minute on a CPU. Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import GeneratorTaskConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(preset="har-tiny", codes="runs/restok_tiny/codes"),
        out="runs/har_tiny",
        samples=24_000,
        batch_size=32,
        optim=OptimConfig(lr=1e-3, weight_decay=0.05, warmup_samples=1_000, final_lr_ratio=0.05),
        ema_decay=0.99,
        log_every=1_000,
        checkpoint_every=10_000,
    )


if __name__ == "__main__":
    main(recipe)
