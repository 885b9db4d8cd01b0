"""Train RAR-B on ten-crop codes of MaskGIT-VQGAN as published: 2,048 samples per step, 250,000 steps, which are 400 epochs.

Orders are random for 125,000 steps, and ever more often raster until step 187,500.

First: `hiergen convert maskgit-vq maskgit-vqgan-imagenet-f16-256.bin runs/maskgit_vq/model` and
`hiergen encode --tokenizer runs/maskgit_vq/model --data.source imagenet/train --data.size 256
--data.in-memory False --views ten_crop --out runs/maskgit_vq/codes`. The other sizes take `--task.preset rar-l` and so on.

Data: codes of maskgit-vq. Time: wants many GPUs; not measured. Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import GeneratorTaskConfig

BATCH = 2048


def recipe() -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(
            preset="rar-b", codes="runs/maskgit_vq/codes", random_until=(125_000 * BATCH, 187_500 * BATCH)
        ),
        out="runs/rar_b",
        samples=250_000 * BATCH,
        batch_size=BATCH,
        precision="bf16",
        num_workers=4,
        optim=OptimConfig(
            lr=4e-4,
            betas=(0.9, 0.96),
            weight_decay=0.03,
            warmup_samples=62_500 * BATCH,
            final_lr_ratio=0.025,
            clip_norm=1.0,
        ),
        ema_decay=None,
        log_every=100 * BATCH,
        checkpoint_every=5_000 * BATCH,
    )


if __name__ == "__main__":
    main(recipe)
