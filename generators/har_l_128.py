"""Train HAR-L on ten-crop codes of ResTok-L-128 as published: 256 samples per step, 8 GPUs, about 300 epochs.

First: `hiergen encode --tokenizer runs/restok_l_128/model --data.source imagenet/train --data.size 256
--data.in-memory False --views ten_crop --out runs/restok_l_128/codes`.

Data: codes of restok-l-128. Time: wants several GPUs; not measured. Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import GeneratorTaskConfig

BATCH = 256


def recipe() -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(preset="har-l", codes="runs/restok_l_128/codes"),
        out="runs/har_l_128",
        samples=1_500_000 * BATCH,
        batch_size=BATCH,
        precision="bf16",
        num_workers=4,
        optim=OptimConfig(lr=1e-4, weight_decay=0.05, warmup_samples=5_000 * BATCH, final_lr_ratio=0.1, clip_norm=1.0),
        ema_decay=0.9999,
        log_every=100 * BATCH,
        checkpoint_every=5_000 * BATCH,
    )


if __name__ == "__main__":
    main(recipe)
