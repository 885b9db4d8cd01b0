"""Train drct-tiny-84: an upscaler behind a trained pyramid-tiny-84, on what that rebuilds, to twice its size.

First: `python tokenizers/pyramid_tiny.py`. Four times the size is `--task.overrides.scale 4 --task.data.size 128`. The base may be any saved
tokenizer of square images: `--task.overrides.base_weights FOLDER`.

Data: embedded digits. Time: minutes on a CPU; not measured to its end. Extra: none.
"""

from hiergen.data.config import DataConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import TokenizerTaskConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=TokenizerTaskConfig(
            preset="drct-tiny-84",
            overrides={"base_weights": "runs/pyramid_tiny/model"},
            data=DataConfig(size=64),
            validation=DataConfig(size=64, split="test"),
        ),
        out="runs/drct_tiny",
        samples=6_000,
        batch_size=16,
        optim=OptimConfig(lr=2e-3, warmup_samples=400, final_lr_ratio=0.05),
        ema_decay=0.97,
        log_every=500,
        checkpoint_every=3_000,
    )


if __name__ == "__main__":
    main(recipe)
