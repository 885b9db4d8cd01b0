"""Train a small HAR on the codes of `tokenizers/restok_small_64.py`, on one GPU or a patient CPU.

First: `hiergen encode --tokenizer runs/restok_small_64/model --data.source PICTURES --data.size 64 --data.in-memory False
--views ten_crop --out runs/restok_small_64/codes`. Then `python generators/har_small_64.py`; `--task.codes FOLDER` takes another cache.

Data: codes of restok-small-64. Time: one GPU, or a patient CPU. Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import GeneratorTaskConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(
            preset="har-tiny",
            overrides={"dim": 384, "depth": 8, "num_heads": 6},
            codes="runs/restok_small_64/codes",
        ),
        out="runs/har_small_64",
        samples=1_000_000,
        batch_size=64,
        optim=OptimConfig(lr=5e-4, weight_decay=0.05, warmup_samples=20_000, final_lr_ratio=0.05),
        ema_decay=0.999,
        checkpoint_every=50_000,
        log_every=5_000,
    )


if __name__ == "__main__":
    main(recipe)
