"""Train hnet-tiny on Python's help topics, as bytes.

Data: comes with Python. Time: three minutes of one CPU core (196 s of processor time). Extra: none.
"""

from hiergen.data.text.config import TextDataConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import TextTaskConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=TextTaskConfig(preset="hnet-tiny", validation=TextDataConfig(split="test", shifts=False)),
        out="runs/hnet_tiny",
        samples=6_000,
        batch_size=8,
        optim=OptimConfig(lr=1e-3, weight_decay=0.1, warmup_samples=600, final_lr_ratio=0.05),
        ema_decay=0.99,
        log_every=400,
        checkpoint_every=2_000,
    )


if __name__ == "__main__":
    main(recipe)
