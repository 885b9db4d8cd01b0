"""Train maskgit-tiny on the codes of titok-tiny.

First: `python tokenizers/titok_tiny.py` and `hiergen encode --tokenizer runs/titok_tiny/model --out runs/titok_tiny/codes`.

Data: codes of titok-tiny. Time: a minute and a half of one CPU core (92 s of processor time). Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import GeneratorTaskConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(preset="maskgit-tiny", codes="runs/titok_tiny/codes"),
        out="runs/maskgit_tiny",
        samples=64_000,
        batch_size=32,
        optim=OptimConfig(lr=1e-3, betas=(0.9, 0.96), weight_decay=0.03, warmup_samples=2_000, final_lr_ratio=0.05),
        ema_decay=0.99,
        log_every=2_000,
        checkpoint_every=20_000,
    )


if __name__ == "__main__":
    main(recipe)
