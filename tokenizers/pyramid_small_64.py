"""Train pyramid-small-340 on any folder of pictures at 64 x 64: four levels of neighborhood attention, on one GPU or a patient CPU.

    python tokenizers/pyramid_small_64.py --task.data.source PICTURES

PICTURES as for `restok_small_64.py`.

Data: a folder of pictures. Time: one GPU, or a patient CPU; not measured. Extra: none.
"""

from hiergen.data.config import DataConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.term_settings import CodebookConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=TokenizerTaskConfig(
            preset="pyramid-small-340",
            data=DataConfig(source="DATA/pictures", size=64, in_memory=False, crop="random", flip=True),
            pixel_weight=10.0,
            codebook=CodebookConfig(revive_after=50_000),
        ),
        out="runs/pyramid_small_64",
        samples=1_000_000,
        batch_size=64,
        num_workers=2,
        optim=OptimConfig(lr=5e-4, warmup_samples=20_000, final_lr_ratio=0.05),
        ema_decay=0.999,
        checkpoint_every=50_000,
        log_every=5_000,
    )


if __name__ == "__main__":
    main(recipe)
