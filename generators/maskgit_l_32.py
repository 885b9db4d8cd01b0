"""Train the MaskGIT generator of TiTok-L-32 as published: 2,048 samples per step, 500,000 steps.

First: `hiergen encode --tokenizer runs/titok_l_32_stage2/model --data.source imagenet/train --data.size 256
--data.in-memory False --views flips --out runs/titok_l_32_stage2/codes`. The other sizes take `--task.preset maskgit-b-64` or
`--task.preset maskgit-s-128`, and codes of theirs.

Data: codes of titok-l-32. Time: wants many GPUs; not measured. Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import GeneratorTaskConfig

BATCH = 2048


def recipe() -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(preset="maskgit-l-32", codes="runs/titok_l_32_stage2/codes"),
        out="runs/maskgit_l_32",
        samples=500_000 * BATCH,
        batch_size=BATCH,
        precision="bf16",
        num_workers=4,
        optim=OptimConfig(
            lr=2e-4,
            betas=(0.9, 0.96),
            weight_decay=0.03,
            warmup_samples=10_000 * BATCH,
            final_lr_ratio=0.05,
            clip_norm=1.0,
        ),
        ema_decay=0.999,
        log_every=100 * BATCH,
        checkpoint_every=5_000 * BATCH,
    )


if __name__ == "__main__":
    main(recipe)
