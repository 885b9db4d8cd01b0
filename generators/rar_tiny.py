"""Train rar-tiny on the codes of maskgit-vq-tiny: random orders in the first half, raster order in the last quarter.

First: `python tokenizers/maskgit_vq_tiny.py` and
`hiergen encode --tokenizer runs/maskgit_vq_tiny/model --out runs/maskgit_vq_tiny/codes`.

Data: codes of maskgit-vq-tiny. Time: a minute and a half of one CPU core (83 s of processor time). Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import GeneratorTaskConfig

SAMPLES = 48_000


def recipe() -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(
            preset="rar-tiny", codes="runs/maskgit_vq_tiny/codes", random_until=(SAMPLES // 2, SAMPLES * 3 // 4)
        ),
        out="runs/rar_tiny",
        samples=SAMPLES,
        batch_size=32,
        optim=OptimConfig(lr=1e-3, betas=(0.9, 0.96), weight_decay=0.03, warmup_samples=2_000, final_lr_ratio=0.05),
        ema_decay=0.99,
        log_every=2_000,
        checkpoint_every=20_000,
    )


if __name__ == "__main__":
    main(recipe)
